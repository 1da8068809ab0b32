"""Figures of one run: loss, alignment and cost. Those of its eigenvalues stand apart.

Each function takes a `RunResults` and returns a figure; what is not logged is left out.
"""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bulk_sgd.lab.report.results import PREFIX, RunResults
from bulk_sgd.lab.report.style import (
    INK,
    MUTED,
    OUTSIDE,
    PREFIX_STYLE,
    STYLE,
    LineStyle,
    arm_styles,
    finish_steps,
    log_or_symlog,
    new_figure,
    plain,
    running_mean,
    say,
    shorten,
    time_unit,
)


@matplotlib.rc_context(STYLE)
def loss_figure(run: RunResults) -> Figure:
    """Training loss on a log scale, and test accuracy, of the prefix and all arms.

    An × marks the last finite point of an arm that diverged.
    """
    figure, (left, right) = new_figure(1, 2, (10.4, 4))
    _draw_arms(left, run, "train_loss")
    losses = [run.series(arm, "train_loss") for arm in (PREFIX, *run.arms)]
    log_or_symlog(left, np.concatenate(losses))
    limit_above(left, calm(run, lambda arm: run.series(arm, "train_loss")))
    label = run.info.get("loss_label")
    left.set_ylabel(plain(f"training loss: {label}" if label else "training loss"))
    _mark_divergence(left, run, "train_loss")
    _finish(left, run, "train_loss")

    _draw_arms(right, run, "test_accuracy", 100)
    arms = calm(run, lambda arm: 100 * run.series(arm, "test_accuracy"), run.arms)
    _zoom_on(right, arms)
    right.set_ylabel("test accuracy (%)")
    _mark_divergence(right, run, "test_accuracy", 100)
    _finish(right, run, "test_accuracy", 100, fork="fork")
    return figure


@matplotlib.rc_context(STYLE)
def alignment_figure(run: RunResults) -> Figure:
    """χ_k of the updates before projection, and of the full-data gradient.

    Pale lines are the values as logged, full ones a running mean.
    """
    figure, (left, right) = new_figure(1, 2, (10.4, 4))
    chi = rf"$\chi_{{{run.rank or 'k'}}}$"
    for axes, key, name, fork in (
        (left, "alignment_update", "the update", None),
        (right, "alignment_gradient", "the full gradient", "fork"),
    ):
        _draw_arms(axes, run, key, smooth=True)
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel(f"{chi} of {name}")
        _finish(axes, run, key, fork=fork, smooth=True)
    return figure


@matplotlib.rc_context(STYLE)
def cost_figure(run: RunResults) -> Figure:
    """Seconds in curvature and elsewhere, one bar for the prefix and each arm."""
    bars = [s for s in map(run.summary, (PREFIX, *run.arms)) if s.seconds]
    styles = run_styles(run)
    figure, (axes,) = new_figure(1, 1, (10.4, 1.3 + 0.42 * max(len(bars), 1)))
    unit, divisor = time_unit(max((s.seconds for s in bars), default=0))
    plain_step = run.info.get("plain_step_seconds")
    for y, s in enumerate(bars):
        dark, light = styles[s.name].shades(2)
        inside, total = s.seconds_curvature / divisor, s.seconds / divisor
        axes.barh(y, inside, color=dark, height=0.62)
        axes.barh(y, total - inside, left=inside, color=light, height=0.62)
        note = f"{s.matvecs:,} matvecs"
        if s.name != PREFIX and plain_step and s.steps:
            ratio = s.seconds / s.steps / plain_step
            note += f", {ratio:.2g}× a plain SGD step"
        axes.annotate(note, (1.01, y), (0, 0), **OUTSIDE, va="center")
    axes.set_yticks(range(len(bars)), [plain(shorten(s.label)) for s in bars])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"wall time ({unit})")
    labels = "in curvature (dark)", "everything else (light)"
    shades = LineStyle(INK).shades(2)
    patches = [Patch(color=c, label=label) for c, label in zip(shades, labels)]
    figure.legend(handles=patches, loc="outside upper left", ncols=2)
    if not bars:
        say(axes, "no times logged")
    return figure


def run_styles(run: RunResults) -> dict[str, LineStyle]:
    """One style for the prefix and each arm."""
    return {PREFIX: PREFIX_STYLE} | arm_styles([run.summary(arm) for arm in run.arms])


def mark_fork(axes: Axes, run: RunResults, text: str | None = None) -> None:
    """A vertical line at the fork with `text` above it, by default step and reason."""
    step = run.fork_step
    if step is None:
        return
    axes.axvline(step, color=MUTED, linewidth=0.9, linestyle=(0, (1, 1.5)))
    text = f"fork at {run.fork_text}" if text is None else text
    low, high = axes.get_xlim()
    place = (step - low) / (high - low)
    side = "left" if place < 0.4 else "right" if place > 0.6 else "center"
    position = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    axes.annotate(plain(text), (step, 1), (0, 4), ha=side, fontsize=8.5, **position)


def calm(run: RunResults, values, arms=None) -> np.ndarray:
    """The finite entries of `values(arm)` over the arms that did not diverge.

    An arm that diverges may end at 1e30 and must not squeeze the others.
    """
    arms = (PREFIX, *run.arms) if arms is None else arms
    chosen = [arm for arm in arms if run.summary(arm).status != "diverged"]
    joined = np.concatenate([[], *(np.ravel(values(arm)) for arm in chosen)])
    return joined[np.isfinite(joined)]


def limit_above(axes: Axes, values: np.ndarray) -> None:
    """Lets the y axis end at ten times the largest of `values`, or before."""
    low, high = axes.get_ylim()
    if values.size and values.max() > 0:
        axes.set_ylim(low, min(high, 10 * values.max()))


def _draw_arms(axes, run, key, scale=1.0, smooth=False):
    """One line per arm; `smooth` adds a running mean and pales the line itself."""
    for arm, style in run_styles(run).items():
        steps, values = run.logged(arm, key)
        if smooth:
            axes.plot(steps, values, color=style.color, linewidth=0.6, alpha=0.35)
            values = _smooth(values)
        axes.plot(steps, scale * values, **vars(style), label=arm)


def _smooth(values):
    return running_mean(values, 1 + 2 * (len(values) // 50))


def _zoom_on(axes, values):
    """Lets the axis begin near the arms, which a long way up would squeeze."""
    if values.size:
        room = max(np.ptp(values), 2.0)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, values.min() - room), min(high, values.max() + room / 4))


def _mark_divergence(axes, run, key, scale=1.0):
    """An × at the last finite point of a diverged arm, or where it leaves the axes."""
    low, high = axes.get_ylim()
    for arm, style in run_styles(run).items():
        steps, values = run.logged(arm, key)
        values = scale * values
        if run.summary(arm).status == "diverged" and values.size:
            inside = np.flatnonzero((low <= values) & (values <= high))
            i = min(inside[-1] + 1, values.size - 1) if inside.size else 0
            y = np.clip(values[i], low, high)
            axes.plot(steps[i], y, "x", color=style.color, ms=8, mew=2.2, clip_on=False)


def _finish(axes, run, key, scale=1.0, fork=None, smooth=False):
    """Marks the fork and labels the ends of the lines."""
    mark_fork(axes, run, fork)
    ends = []
    for arm, style in run_styles(run).items():
        _, values = run.logged(arm, key)
        if values.size:
            summary = run.summary(arm)
            text = "prefix" if arm == PREFIX else shorten(summary.label)
            text += " (diverged)" * (summary.status == "diverged")
            end = scale * (_smooth(values) if smooth else values)[-1]
            ends.append((end, text, vars(style)))
    finish_steps(axes, ends)
