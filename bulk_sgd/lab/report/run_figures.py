"""Figures of one run: loss, alignment and cost. What is not logged is left out."""

import functools
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bulk_sgd.lab.report import style
from bulk_sgd.lab.report.formatting import number
from bulk_sgd.lab.report.results import PREFIX, RunResults


@matplotlib.rc_context(style.STYLE)
def loss_figure(run: RunResults) -> Figure:
    """Training loss on a log scale, and test accuracy or else test loss."""
    figure, (left, right) = style.new_figure(1, 2, (10.4, 4))
    _draw_arms(left, run, "train_loss")
    losses = [run.series(arm, "train_loss") for arm in (PREFIX, *run.arms)]
    style.log_or_symlog(left, np.concatenate(losses))
    limit_above(left, calm(run, lambda arm: run.series(arm, "train_loss")))
    label = run.info.get("loss_label")
    left.set_ylabel(style.plain("training loss" + (f": {label}" if label else "")))
    _finish(left, run, "train_loss")

    key, scale, label = measured_on_test(run)
    _draw_arms(right, run, key, scale)
    arms = calm(run, lambda arm: scale * run.series(arm, key), run.arms)
    if arms.size:  # a long way up would squeeze them
        _limit_to(right, arms, 2.0 if key == "test_accuracy" else 0.1 * arms.min())
    if key == "test_accuracy":
        style.percent_axis(right)
    right.set_ylabel(label)
    _finish(right, run, key, scale, fork="fork")
    return figure


def measured_on_test(run: RunResults) -> tuple[str, float, str]:
    """The metric of the test data to draw: its key, factor and label."""
    if run.is_logged("test_accuracy"):
        return "test_accuracy", 100, "test accuracy (%)"
    return "test_loss", 1, "test loss"


def _limit_to(axes, values, least):
    """Limits the y axis to the values and a margin, their range or at least `least`."""
    room = max(np.ptp(values), least)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, values.min() - room), min(high, values.max() + room))


@matplotlib.rc_context(style.STYLE)
def alignment_figure(run: RunResults) -> Figure:
    """χ_k of the updates before projection and, if measured, of the full gradient."""
    panels = [("alignment_update", "the update", None)]
    if run.is_logged("alignment_gradient"):
        panels += [("alignment_gradient", "the full gradient", "fork")]
    figure, drawn = style.new_figure(1, len(panels), (10.4, 4))
    chi = rf"$\chi_{{{run.rank or 'k'}}}$"
    for axes, (key, name, fork) in zip(drawn, panels):
        _draw_arms(axes, run, key, smooth=True)
        values = calm(run, functools.partial(run.after_fork, key=key), run.arms)
        if values.size:
            room = max(0.05, 0.1 * np.ptp(values))
            low, high = values.min() - room, values.max() + room
            axes.set_ylim(max(low, -0.02), min(high, 1.02))
        axes.set_ylabel(f"{chi} of {name}")
        _finish(axes, run, key, fork=fork, smooth=True)
    return figure


@matplotlib.rc_context(style.STYLE)
def cut_figure(run: RunResults) -> Figure:
    """What basis vectors in factors leave out, of a run that has factors."""
    figure, (axes,) = style.new_figure(1, 1, (10.4, 3))
    _draw_arms(axes, run, "energy_lost", 100)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("energy lost (%)")
    _finish(axes, run, "energy_lost", 100)
    return figure


@matplotlib.rc_context(style.STYLE)
def own_figure(run: RunResults) -> Figure:
    """A panel for each measurement by a function of the user."""
    keys = (*run.own, *run.own_lists)
    figure, panels = style.new_figure(len(keys), 1, (10.4, 4 * len(keys)))
    for key, axes in zip(keys, panels):
        label = style.plain(key.removeprefix("own/"))
        if key in run.own:
            panel(axes, run, key, label)
            continue
        axes.set_ylabel(label)
        ends = []
        for arm, line in run_styles(run).items():
            values = run.lists(arm, key)
            for column, color in zip(values.T, line.shades(values.shape[1])):
                axes.plot(run.steps(arm), column, color=color, linewidth=1.2)
            if values.size:
                label = style.shorten(run.summary(arm).label)
                ends.append((values[-1, 0], label, vars(line)))
        mark_fork(axes, run, "fork")
        style.finish_steps(axes, ends)
    return figure


def panel(axes: Axes, run: RunResults, key: str, label: str, least=None):
    """Draws a column of the rows, for all arms, into axes that may hold other lines."""
    _draw_arms(axes, run, key)
    if least is not None:
        axes.set_ylim(bottom=least)
    axes.set_ylabel(label)
    _finish(axes, run, key, fork="fork")


@matplotlib.rc_context(style.STYLE)
def cost_figure(run: RunResults) -> Figure:
    """Seconds in curvature and elsewhere, one bar for the prefix and each arm."""
    bars = [s for s in map(run.summary, (PREFIX, *run.arms)) if s.seconds]
    lines = run_styles(run)
    figure, (axes,) = style.new_figure(1, 1, (10.4, 1.3 + 0.42 * max(len(bars), 1)))
    longest = max((s.seconds for s in bars), default=0)
    unit, divisor = ("minutes", 60.0) if longest > 600 else ("seconds", 1.0)
    if longest > 3 * 3600:
        unit, divisor = "hours", 3600.0
    plain_step = run.info.get("plain_step_seconds")
    for y, s in enumerate(bars):
        dark, light = lines[s.name].shades(2)
        inside, total = s.seconds_curvature / divisor, s.seconds / divisor
        axes.barh(y, inside, color=dark, height=0.62)
        axes.barh(y, total - inside, left=inside, color=light, height=0.62)
        note = f"{s.matvecs:,} matvecs"
        if s.name != PREFIX and plain_step and s.steps:
            note += f", {number(s.seconds / s.steps / plain_step, 2)}× a plain SGD step"
        axes.annotate(note, (1.01, y), (0, 0), **style.OUTSIDE, va="center")
    names = [style.plain(style.shorten(s.label)) for s in bars]
    axes.set_yticks(range(len(bars)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"wall time ({unit})")
    labels = "in curvature (dark)", "everything else (light)"
    shades = style.LineStyle(style.INK).shades(2)
    patches = [Patch(color=c, label=label) for c, label in zip(shades, labels)]
    figure.legend(handles=patches, loc="outside upper left", ncols=2)
    if not bars:
        style.say(axes, "no times logged")
    return figure


def run_styles(run: RunResults) -> dict[str, style.LineStyle]:
    """One style for the prefix and each arm."""
    arms = style.arm_styles([run.summary(arm) for arm in run.arms])
    return {PREFIX: style.PREFIX_STYLE} | arms


def mark_fork(axes: Axes, run: RunResults, text: str | None = None) -> None:
    """A vertical line at the fork with `text` at its foot, by default step and reason.

    The text is inside the axes, so a title has room above them.
    """
    step = run.fork_step
    if step is None:
        return
    axes.axvline(step, color=style.MUTED, linewidth=0.9, linestyle=(0, (1, 1.5)))
    if text is None:  # the reason in a line of its own
        text = style.plain(f"fork at {run.fork_text}".replace(" (", "\n("))
    low, high = axes.get_xlim()
    side = "right" if step - low >= high - step else "left"  # where there is more room
    position = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
    across = -4 if side == "right" else 4
    look = {"ha": side, "fontsize": 8.5, "bbox": box if text else None}
    axes.annotate(text, (step, 0), (across, 4), **look, **position)


def calm(
    run: RunResults, values: Callable, arms: Sequence[str] | None = None
) -> np.ndarray:
    """The finite entries of `values(arm)` over the arms that did not diverge.

    An arm that diverges may end at 1e30 and must not squeeze the others.
    """
    arms = (PREFIX, *run.arms) if arms is None else arms
    chosen = [arm for arm in arms if run.summary(arm).status != "diverged"]
    joined = np.concatenate([[], *(np.ravel(values(arm)) for arm in chosen)])
    return joined[np.isfinite(joined)]


def limit_above(axes: Axes, values: np.ndarray) -> None:
    """Lets the y axis end at ten times the largest of `values`, or before."""
    most = 10 * values.max(initial=0)
    if 0 < most < axes.get_ylim()[1]:
        axes.set_ylim(top=most)


def is_smoothed(run: RunResults, key: str) -> bool:
    """Whether an arm has enough rows for a running mean to differ from them."""
    return any(_window(run.logged(arm, key)[1]) > 1 for arm in run.rows)


def _draw_arms(axes, run, key, scale=1.0, smooth=False):
    """One line per arm; `smooth` adds a running mean and pales the line itself."""
    for arm, line in run_styles(run).items():
        steps, values = run.logged(arm, key)
        if smooth and _window(values) > 1:
            axes.plot(steps, values, color=line.color, linewidth=0.6, alpha=0.35)
            values = _smooth(values)
        axes.plot(steps, scale * values, **style.points(line, len(steps)), label=arm)


def _window(values):
    return 1 + 2 * (len(values) // 50)


def _smooth(values):
    """Centred mean over a twenty-fifth of the entries, over fewer at both ends."""
    if not values.size:
        return values
    window = np.ones(_window(values))
    total = np.convolve(values, window, "same")
    return total / np.convolve(np.ones(len(values)), window, "same")


def _finish(axes, run, key, scale=1.0, fork=None, smooth=False):
    """Marks the fork, and labels the ends of the lines.

    An × is at the last finite point of a diverged arm, or where it leaves the axes.
    """
    ends, (low, high) = [], axes.get_ylim()
    for arm, line in run_styles(run).items():
        steps, values = run.logged(arm, key)
        if not values.size:
            continue
        values = scale * (_smooth(values) if smooth else values)
        text = "prefix" if arm == PREFIX else style.shorten(run.summary(arm).label)
        diverged = run.summary(arm).status == "diverged"
        ends.append((values[-1], text + " (diverged)" * diverged, vars(line)))
        if diverged and not smooth:
            inside = np.flatnonzero((low <= values) & (values <= high))
            i = min(inside[-1] + 1, values.size - 1) if inside.size else 0
            y = np.clip(values[i], low, high)
            axes.plot(steps[i], y, "x", color=line.color, ms=8, mew=2.2, clip_on=False)
    mark_fork(axes, run, fork)
    style.finish_steps(axes, ends)
