"""Figures of one run: loss, alignment, eigenvalues and cost.

Each function takes a `Run` and returns a `matplotlib.figure.Figure`; whatever the run
has not logged is left out. `bulk_sgd.style` holds what the figures share.
"""

import math

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bulk_sgd.lab.report.results import PREFIX, Run
from bulk_sgd.lab.report.style import (
    INK,
    MUTED,
    PREFIX_STYLE,
    STYLE,
    LineStyle,
    arm_styles,
    label_ends,
    log_or_symlog,
    new_figure,
    plain,
    running_mean,
    shorten,
    time_unit,
)

_IN_X = {
    "xycoords": ("axes fraction", "data"),
    "textcoords": "offset points",
    "fontsize": 8.5,
    "annotation_clip": False,
}


@matplotlib.rc_context(STYLE)
def loss_figure(run: Run) -> Figure:
    """Training loss on a log scale, and test accuracy, of the prefix and all arms.

    An × marks the last finite point of an arm that diverged.
    """
    figure, (left, right) = new_figure(1, 2, (10.4, 4))
    _draw_arms(left, run, "train_loss")
    losses = [run.series(arm, "train_loss") for arm in (PREFIX, *run.arms)]
    log_or_symlog(left, np.concatenate(losses))
    calm = _calm(run, (PREFIX, *run.arms), lambda arm: run.series(arm, "train_loss"))
    _limit_above(left, calm, factor=10)
    label = run.info.get("loss_label")
    left.set_ylabel(plain(f"training loss: {label}" if label else "training loss"))
    _mark_divergence(left, run, "train_loss")
    _finish(left, run, "train_loss")

    _draw_arms(right, run, "test_accuracy", 100)
    calm = _calm(run, run.arms, lambda arm: 100 * run.series(arm, "test_accuracy"))
    _zoom_on(right, calm)
    right.set_ylabel("test accuracy (%)")
    _mark_divergence(right, run, "test_accuracy", 100)
    _finish(right, run, "test_accuracy", 100, switch="switch")
    return figure


@matplotlib.rc_context(STYLE)
def alignment_figure(run: Run) -> Figure:
    """χ_k of the updates before projection, and of the full-data gradient.

    Pale lines are the values as logged, full ones a running mean.
    """
    figure, (left, right) = new_figure(1, 2, (10.4, 4))
    chi = rf"$\chi_{{{run.rank}}}$" if isinstance(run.rank, int) else r"$\chi_k$"
    for axes, key, name in (
        (left, "alignment_update", "the update"),
        (right, "alignment_gradient", "the full gradient"),
    ):
        _draw_arms(axes, run, key, smooth=True)
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel(f"{chi} of {name}")
        switch = None if axes is left else "switch"
        _finish(axes, run, key, switch=switch, smooth=True)
    return figure


@matplotlib.rc_context(STYLE)
def eigenvalue_figure(run: Run) -> Figure:
    """λ_1 … λ_k along training, one panel per arm, the prefix before it in grey."""
    tables = {arm: run.eigenvalues(arm) for arm in (PREFIX, *run.arms)}
    shown = [arm for arm in run.arms if np.isfinite(tables[arm]).any()] or [PREFIX]
    columns = min(len(shown), 3)
    rows = math.ceil(len(shown) / columns)
    figure, panels = new_figure(rows, columns, (10.4, 0.9 + 2.5 * rows), share=True)
    for axes in panels[len(shown) :]:
        axes.remove()
    values = np.concatenate([table.ravel() for table in tables.values()])
    values = values[np.isfinite(values)]
    threshold = stability_threshold(run)
    marked = threshold_in_range(threshold, values)
    for axes, arm in zip(panels, shown):
        for name in dict.fromkeys((PREFIX, arm)):
            _draw_eigenvalues(axes, run.steps(name), tables[name], _styles(run)[name])
        dashed = {"color": INK, "linewidth": 0.9, "linestyle": (0, (4, 2))}
        if marked:
            axes.axhline(threshold, **dashed)
        elif math.isnan(threshold):
            axes.plot(*_thresholds(run, arm), **dashed)
        mark_switch(axes, run, text="")
        if arm != PREFIX:
            summary = run.summary(arm)
            title = shorten(f"{summary.label}   {summary.formula}", 37)
            axes.set_title(plain(title), loc="left")
    # All panels share their limits, final only once every panel is drawn.
    log_or_symlog(panels[0], values)
    _limit_above(panels[0], _calm(run, tables, tables.get), factor=10)
    for i, (axes, arm) in enumerate(zip(panels, shown)):
        _label_eigenvalues(axes, tables[arm])
        if marked:
            text = rf"${run.stability:.4g}/\eta$ = {threshold:.4g}"
            # On white, for lines may run under it.
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
            axes.annotate(text, (0.02, threshold), (0, 3.5), **_IN_X, bbox=box)
        # Sharing hides the ticks of a column whose last row is missing.
        axes.xaxis.set_tick_params(labelbottom=i + columns >= len(shown))
    figure.supxlabel("step", fontsize=STYLE["font.size"])
    name = rf"\lambda_{{{run.rank}}}" if isinstance(run.rank, int) else r"\lambda_k"
    label = rf"eigenvalues $\lambda_1, \ldots, {name}$"
    figure.supylabel(label, fontsize=STYLE["font.size"])
    if not values.size:
        _say(panels[0], "no eigenvalues logged")
    return figure


@matplotlib.rc_context(STYLE)
def cost_figure(run: Run) -> Figure:
    """Seconds in curvature and elsewhere, one bar for the prefix and each arm."""
    arms = [run.summary(arm) for arm in run.arms]
    bars = [s for s in (run.summary(PREFIX), *arms) if s.seconds]
    styles = arm_styles(arms) | {PREFIX: PREFIX_STYLE}
    figure, (axes,) = new_figure(1, 1, (10.4, 1.3 + 0.42 * max(len(bars), 1)))
    unit, divisor = time_unit(max((s.seconds for s in bars), default=0))
    plain_step = run.info.get("plain_step_seconds")
    for y, s in enumerate(bars):
        dark, light = styles[s.name].shades(2)
        inside, total = s.seconds_curvature / divisor, s.seconds / divisor
        axes.barh(y, inside, color=dark, height=0.62)
        axes.barh(y, total - inside, left=inside, color=light, height=0.62)
        note = f"{s.matvecs:,} matvecs"
        if s.name != PREFIX and plain_step:
            ratio = s.seconds_per_step / plain_step
            known = math.isfinite(ratio)
            note += f", {ratio:.2g}× a plain SGD step" if known else ""
        axes.annotate(note, (1.01, y), (0, 0), **_IN_X, va="center")
    axes.set_yticks(range(len(bars)), [plain(shorten(s.label)) for s in bars])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"wall time ({unit})")
    patches = [
        Patch(color=c, label=label)
        for c, label in zip(
            LineStyle(INK).shades(2), ("in curvature (dark)", "everything else (light)")
        )
    ]
    figure.legend(handles=patches, loc="outside upper left", ncols=2)
    if not bars:
        _say(axes, "no times logged")
    return figure


def mark_switch(axes: Axes, run: Run, text: str | None = None) -> None:
    """A vertical line at the switch with `text` above it, by default step and reason.

    Draws nothing while there was no switch.
    """
    step = run.switch_step
    if step is None:
        return
    axes.axvline(step, color=MUTED, linewidth=0.9, linestyle=(0, (1, 1.5)))
    if text is None:
        text = switch_text(run)
    low, high = axes.get_xlim()
    place = (step - low) / (high - low)
    side = "left" if place < 0.4 else "right" if place > 0.6 else "center"
    position = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    axes.annotate(plain(text), (step, 1), (0, 4), ha=side, fontsize=8.5, **position)


def switch_text(run: Run) -> str:
    """When and why the run switched, such as `switch at step 800: alignment …`."""
    reason = str((run.info.get("switch") or {}).get("reason") or "")
    text = f"switch at step {run.switch_step:,}"
    return text if reason in ("", f"step {run.switch_step}") else f"{text}: {reason}"


def stability_threshold(run: Run) -> float:
    """2/η for SGD, above which a sharp direction is unstable.

    NaN where the optimizer has none, and where η is unknown or changes.
    """
    rates = np.concatenate([run.rates(arm) for arm in run.rows])
    rate = rates[0] if np.ptp(rates) == 0 else math.nan
    return run.stability / rate if rate > 0 else math.nan


def _thresholds(run, arm):
    """The same along the steps of an arm, where η is known and not 0."""
    rates = run.rates(arm)
    known = rates > 0
    return run.steps(arm)[known], run.stability / rates[known]


def threshold_in_range(threshold: float, values: np.ndarray) -> bool:
    """Whether a line at `threshold` keeps the finite `values` readable."""
    return bool(values.size) and values.min() / 3 <= threshold <= values.max() * 3


def _styles(run):
    return {PREFIX: PREFIX_STYLE} | arm_styles([run.summary(arm) for arm in run.arms])


def _label(run, arm):
    return "prefix" if arm == PREFIX else shorten(run.summary(arm).label)


def _logged(run, arm, key, scale=1.0):
    """Steps and values where `key` was logged; it may be rarer than other metrics."""
    values = scale * run.series(arm, key)
    finite = np.isfinite(values)
    return run.steps(arm)[finite], values[finite]


def _smooth(values):
    return running_mean(values, 1 + 2 * (len(values) // 50))


def _draw_arms(axes, run, key, scale=1.0, smooth=False):
    """One line per arm; `smooth` adds a running mean and pales the line itself."""
    for arm, style in _styles(run).items():
        steps, values = _logged(run, arm, key, scale)
        if smooth:
            axes.plot(steps, values, color=style.color, linewidth=0.6, alpha=0.35)
            values = _smooth(values)
        axes.plot(steps, values, **vars(style), label=arm)


def _calm(run, arms, values):
    """All finite entries of `values(arm)` over the arms that did not diverge.

    One that does may end at 1e30: it must not squeeze the others.
    """
    calm = [arm for arm in arms if run.summary(arm).status != "diverged"]
    joined = np.concatenate([[], *(np.ravel(values(arm)) for arm in calm)])
    return joined[np.isfinite(joined)]


def _limit_above(axes, calm, factor):
    low, high = axes.get_ylim()
    if calm.size and calm.max() > 0:
        axes.set_ylim(low, min(high, factor * calm.max()))


def _zoom_on(axes, calm):
    """Lets the axis begin near the arms, which a long way up would squeeze."""
    if calm.size:
        room = max(np.ptp(calm), 2.0)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, calm.min() - room), min(high, calm.max() + room / 4))


def _mark_divergence(axes, run, key, scale=1.0):
    """An × at the last finite point of a diverged arm, or where it leaves the axes."""
    low, high = axes.get_ylim()
    for arm, style in _styles(run).items():
        steps, values = _logged(run, arm, key, scale)
        if run.summary(arm).status == "diverged" and values.size:
            inside = np.flatnonzero((low <= values) & (values <= high))
            i = min(inside[-1] + 1, values.size - 1) if inside.size else 0
            y = np.clip(values[i], low, high)
            axes.plot(steps[i], y, "x", color=style.color, ms=8, mew=2.2, clip_on=False)


def _finish(axes, run, key, scale=1.0, switch=None, smooth=False):
    """Labels the ends of the lines and the switch."""
    axes.set_xlabel("step")
    ends = []
    for arm, style in _styles(run).items():
        _, values = _logged(run, arm, key, scale)
        if values.size:
            diverged = run.summary(arm).status == "diverged"
            text = _label(run, arm) + (" (diverged)" if diverged else "")
            end = _smooth(values)[-1] if smooth else values[-1]
            ends.append((end, text, vars(style)))
    if not ends:
        _say(axes, "nothing logged")
    mark_switch(axes, run, switch)
    label_ends(axes, ends)


def _draw_eigenvalues(axes, steps, table, style):
    logged = np.isfinite(table).any(axis=1)
    for values, color in zip(table[logged].T, style.shades(table.shape[1])):
        axes.plot(steps[logged], values, color=color, linewidth=1.2)


def _label_eigenvalues(axes, table):
    """Names the first and the last eigenvalue in the right margin."""
    last = table[np.isfinite(table).any(axis=1)][-1:].ravel()
    low, high = axes.get_ylim()
    for i in {0, len(last) - 1} if len(last) else ():
        if low <= last[i] <= high:
            name = rf"$\lambda_{{{i + 1}}}$"
            axes.annotate(name, (1, last[i]), (3, 0), **_IN_X, va="center")


def _say(axes, text):
    axes.text(0.5, 0.5, text, color=MUTED, ha="center", transform=axes.transAxes)
