"""The look that all figures share: colours, fonts and helpers for axes.

The colours are Okabe and Ito's, which colour-blind readers can distinguish. Without
pyplot there is no global state, so figures can be drawn in threads.
"""

import dataclasses
import math
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoLocator, LogLocator
from matplotlib.transforms import ScaledTranslation, blended_transform_factory

from bulk_sgd.lab.report.formatting import exact
from bulk_sgd.lab.report.results import BULK_SGD, DOM_SGD, SGD, Summary

FEW = 12  # the most points of a line that are marked
INK, MUTED = "#222222", "#6b6b6b"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "lines.solid_capstyle": "round",
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("axes.labelcolor", "text.color"), INK),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), INK),
}
METHOD_COLORS = {SGD: "#222222", DOM_SGD: "#D55E00", BULK_SGD: "#0072B2"}
OTHER_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ((0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)), (0, (2.6, 1.2)))


@dataclasses.dataclass(frozen=True)
class LineStyle:
    """How one arm is drawn: `vars(style)` are keywords of a line."""

    color: str
    linestyle: str | tuple = "-"
    linewidth: float = 1.7

    def shades(self, count: int) -> list[str]:
        """`count` shades of the colour, from the colour itself to a light tint."""
        color = np.array(to_rgb(self.color))
        return [to_hex(color * (1 - t) + t) for t in np.linspace(0, 0.72, count)]


PREFIX_STYLE = LineStyle("#8c8c8c")
# H, G and F: symbol and style.
OPERATOR_STYLES = {
    "hessian": (r"$H$", LineStyle("#222222", linewidth=2.4)),
    "gauss_newton": (r"$G$", LineStyle("#009E73", (0, (5, 1.6)))),
    "functional_hessian": (r"$F$", LineStyle("#CC79A7", (0, (1.2, 1.4)))),
}
# Places a note at a height in data units, and across in fractions of the axes.
OUTSIDE = {
    "xycoords": ("axes fraction", "data"),
    "textcoords": "offset points",
    "fontsize": 8.5,
    "annotation_clip": False,
}


def arm_styles(summaries: Sequence[Summary]) -> dict[str, LineStyle]:
    """One style per arm of one or several runs, the same in every figure.

    SGD is black, Dom-SGD vermillion and Bulk-SGD blue. Other arms are dashed and take
    other hues in the order of a / (a + b), which follows α along each family.
    """

    def order(arm):
        a, b = arm.scales
        share = a / (a + b) if math.isfinite(a + b) and a + b else math.inf
        return share, arm.name

    styles = {}
    for arm in (s for s in summaries if s.method):
        color = METHOD_COLORS[arm.method]
        twins = sum(style.color == color for style in styles.values())
        # SGD is wide, so that its rim shows under an arm that coincides with it.
        width = 2.8 if arm.method == SGD else 1.7
        styles[arm.name] = LineStyle(color, ("-", *DASHES)[twins % 5], width)
    others = sorted((s for s in summaries if not s.method), key=order)
    for i, arm in enumerate(others):
        turn, hue = divmod(i, len(OTHER_COLORS))
        dash = DASHES[(i + turn) % len(DASHES)]
        styles[arm.name] = LineStyle(OTHER_COLORS[hue], dash)
    return styles


def series_styles(names: Sequence[str], ordered: bool = False) -> dict[str, LineStyle]:
    """One style per name that is not an arm; `ordered` names take shades in order."""
    if ordered:
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(names)))
        return {name: LineStyle(to_hex(c)) for name, c in zip(names, shades)}
    hues = (METHOD_COLORS[BULK_SGD], METHOD_COLORS[DOM_SGD], *OTHER_COLORS)
    dashes = ("-", *DASHES)
    return {
        name: LineStyle(hues[i % len(hues)], dashes[i // len(hues) % len(dashes)])
        for i, name in enumerate(names)
    }


def legend(figure: Figure, labels: Sequence[str], handles, scale: float = 1) -> None:
    """A legend above all panels, in as few lines as fit, with text of a `scale`."""
    # A letter is about 1/14 inch wide; the line beside a label takes five letters.
    width = figure.get_figwidth() / scale
    longest = max(map(len, labels), default=0)
    columns = max(1, min(len(labels), int(14 * width / (longest + 7))))
    place = {"loc": "outside upper left", "ncols": columns}
    place["fontsize"] = scale * STYLE["font.size"]
    figure.legend(handles=list(handles), labels=list(labels), **place)


def new_figure(
    rows: int, columns: int, size: tuple[float, float], share: bool | str = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `size` inches, and its panels row by row; they may share ranges.

    With `share` "row" the panels of a row have one y axis.
    """
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    sharex = False if share == "row" else share
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=share)
    return figure, list(axes.ravel())


def log_or_symlog(axes: Axes, values: np.ndarray) -> None:
    """A log y axis if all finite `values` are positive, else a symmetric log one."""
    values = values[np.isfinite(values)]
    if (values > 0).all():
        log_axis(axes)
    else:
        symlog_axis(axes, max(np.abs(values).max() * 1e-3, 1e-12))


def symlog_axis(axes: Axes, threshold: float) -> None:
    """A y axis linear up to a threshold and log beyond, with plain numbers."""
    axes.set_yscale("symlog", linthresh=threshold)
    axes.yaxis.set_major_formatter(lambda value, _: exact(value))


def log_axis(axes: Axes) -> None:
    """A log y axis with plain numbers at its ticks, however short or long it is."""
    axes.set_yscale("log")
    plain_ticks(axes)


def plain_ticks(axes: Axes) -> None:
    """Plain numbers at the ticks of a log y axis, or of a colour bar."""
    axes.yaxis.set_major_locator(_OneTwoFive(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: exact(value))
    axes.yaxis.set_minor_locator(LogLocator(subs=range(1, 10)))

    def number(value, _):
        """Numbers also at the minor ticks of an axis that has few major ones."""
        low, high = axes.get_ylim()
        digit = round(value / 10 ** math.floor(math.log10(value) + 1e-9))
        few = () if high > 32 * low else (3, 4, 7) if high > 5 * low else range(10)
        return exact(value) if digit in few and digit not in (1, 2, 5) else ""

    axes.yaxis.set_minor_formatter(number)


class _OneTwoFive(LogLocator):
    def tick_values(self, low, high):
        """Only powers of ten over more than three decades: others have no room."""
        wide = 0 < 1e3 * low < high
        found = () if wide else super().tick_values(low, high)
        return found if len(found) else LogLocator().tick_values(low, high)


def percent_axis(axes: Axes) -> None:
    """A y axis that ends a little above 100, with no tick above 100."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, min(high, 100 + 0.01 * (100 - low)))
    axes.yaxis.set_major_locator(_UpTo100())


class _UpTo100(AutoLocator):
    def tick_values(self, low, high):
        found = super().tick_values(low, high)
        return found[found <= 100]


def finish_steps(axes: Axes, ends: Sequence[tuple[float, str, dict]]) -> None:
    """Labels the x axis, and each line in the right margin at the height of its end.

    `ends` holds (y in data units, text, keywords of the line) per line. The limits of
    the axes must be final. If the scale changes later, each label follows its line and
    keeps its offset from it.
    """
    axes.set_xlabel("step")
    axes.locator_params(axis="x", nbins=6)  # more would touch at five digits
    ends = sorted((e for e in ends if math.isfinite(e[0])), key=lambda end: end[0])
    if not ends:
        say(axes, "nothing logged")
    axes.get_ylim()  # places the lines
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = np.array([to_axes.transform((1, y))[1] for y, _, _ in ends])
    line = 1.45 * matplotlib.rcParams["font.size"]
    rows = axes.get_subplotspec().get_gridspec().nrows
    inches = 0.8 * axes.figure.get_size_inches()[1] / rows  # about the height of axes
    inside = np.clip(heights, 0, 1)
    moves = inches * (spread(inside, line / (72 * inches)) - inside)
    along = blended_transform_factory(axes.transAxes, axes.transData)
    for (_, text, style), height, move in zip(ends, inside, moves):
        y = to_axes.inverted().transform((1, height))[1]
        moved = ScaledTranslation(0, move, axes.figure.dpi_scale_trans)
        outside = {"transform": along + moved, "clip_on": False}
        axes.add_artist(Line2D([1.02, 1.075], [y, y], **style, **outside))
        axes.text(1.09, y, plain(text), va="center", **outside)


def points(line: LineStyle, count: int) -> dict:
    """Keywords of a line through `count` points, marked where they are few."""
    return vars(line) | ({"marker": "o", "markersize": 3.5} if count <= FEW else {})


def say(axes: Axes, text: str) -> None:
    """A few words instead of a drawing."""
    axes.text(0.5, 0.5, text, color=MUTED, ha="center", transform=axes.transAxes)


def spread(heights: np.ndarray, gap: float) -> np.ndarray:
    """Moves ascending heights in 0 to 1, shape (n,), `gap` apart if there is room."""
    count = len(heights)
    gap = min(gap, 1 / max(count - 1, 1))
    offsets = gap * np.arange(count)
    up = np.maximum.accumulate(heights - offsets)
    down = np.minimum.accumulate((heights - offsets)[::-1])[::-1]
    return np.clip((up + down) / 2, 0, 1 - gap * (count - 1)) + offsets


def plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")


def shorten(text: str, width: int = 30) -> str:
    """Text cut to what fits beside a figure, at most `width` letters."""
    fits = len(text) <= width
    return text if fits else textwrap.shorten(text, width, placeholder=" …")
