"""Figures of an analysis, each of the list of points that `analyze` returns."""

import functools

import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bulk_sgd.lab.files.record import PREFIX
from bulk_sgd.lab.report import style
from bulk_sgd.spectra.density import SpectralDensity

SHOWN = 4  # points whose whole density is drawn
SHOWN_MATRICES = 12  # names that fit in a legend
_DIRECTIONS = {  # of slices
    "dominant 1": r"$u_1$",
    "dominant 2": r"$u_2$",
    "bulk gradient": "bulk part of the gradient",
    "bulk random": "random, in the bulk",
}


def path_styles(points: list[dict]) -> dict[str, style.LineStyle]:
    """One style per path; a method has the colour it has in reports of runs."""
    known = {PREFIX: style.PREFIX_STYLE}
    known |= {name: style.LineStyle(c) for name, c in style.METHOD_COLORS.items()}
    others = [path for path in _paths(points) if path not in known]
    for index, path in enumerate(others):
        color = style.OTHER_COLORS[index % len(style.OTHER_COLORS)]
        known[path] = style.LineStyle(color)
    return {path: known[path] for path in _paths(points)}


@matplotlib.rc_context(style.STYLE)
def eigenvalue_figure(points: list[dict]) -> Figure:
    """λ_1 … λ_k, and χ of the gradient and of the update."""
    figure, (left, right) = style.new_figure(1, 2, (10.4, 4))
    ends = []
    for path, line in path_styles(points).items():
        steps, values = _series(points, path, "eigenvalues")
        for column, color in zip(values.T, line.shades(values.shape[1])):
            left.plot(steps, column, ".-", color=color, linewidth=1.2)
        ends.append((values[-1, 0], _label(path), vars(line)))
        for key, dashes in (("gradient", "-"), ("update", ":")):
            _draw(right, points, path, dashes, line.color, "alignment", key)
    style.log_or_symlog(left, _numbers([p["eigenvalues"] for p in points]))
    left.set_ylabel("eigenvalues of the Hessian")
    right.set_ylim(-0.02, 1.02)
    right.set_ylabel(r"$\chi_k$ of gradient (full) and update (dotted)")
    style.finish_steps(left, ends)
    right.set_xlabel("step")
    return figure


@matplotlib.rc_context(style.STYLE)
def density_figure(points: list[dict]) -> Figure:
    """The spectral density at up to `SHOWN` points, with the top eigenvalues marked."""
    shown = selected(points)
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    size = 10.4, 0.8 + 2.6 * rows
    figure, panels = style.new_figure(rows, columns, size, share=True)
    for axes in panels[len(shown) :]:
        axes.remove()
    styles = path_styles(points)
    for axes, point in zip(panels, shown):
        color = styles[point["path"]].color
        grid, density = smoothed(point)
        # No part of a spectrum is less than one eigenvalue.
        floor = 1e-2 / point["num_params"] / np.ptp(grid)
        density = np.maximum(density, floor)
        axes.fill_between(grid, floor, density, color=color, alpha=0.25, linewidth=0)
        axes.plot(grid, density, color=color, linewidth=1.2)
        style.log_axis(axes)
        values, count = _numbers(point["eigenvalues"]), point["outliers"] or 0
        for chosen, face in ((values[:count], color), (values[count:], "white")):
            axes.plot(chosen, [floor] * len(chosen), "v", color=color, ms=6,
                      markerfacecolor=face, clip_on=False)  # fmt: skip
        axes.set_title(style.plain(style.shorten(point["name"], 37)), loc="left")
    size = style.STYLE["font.size"]
    figure.supxlabel("eigenvalue", fontsize=size)
    figure.supylabel("density of the Hessian's spectrum", fontsize=size)
    return figure


@matplotlib.rc_context(style.STYLE)
def energy_figure(points: list[dict]) -> Figure:
    """Traces and Frobenius shares of H, G and F, one panel pair for all paths."""
    figure, (left, right) = style.new_figure(1, 2, (10.4, 4))
    ends = {left: [], right: []}
    for operator in points[0]["energies"]:
        symbol, line = style.OPERATOR_STYLES[operator]
        symbol, color = symbol.strip("$"), line.color
        for path in _paths(points):
            steps, error = _series(points, path, "energies", operator, "trace_error")
            for axes, key in ((left, "trace"), (right, "frobenius_share")):
                keys, dashes = ("energies", operator, key), _dashes(points, path)
                values = _draw(axes, points, path, dashes, color, *keys)
                if axes is left:
                    band = values - 2 * error, values + 2 * error
                    axes.fill_between(steps, *band, color=color, alpha=0.2, linewidth=0)
                if path == points[-1]["path"]:
                    ends[axes].append((values[-1], symbol, {"color": color}))
    left.set_ylabel("trace")
    right.set_ylabel("Frobenius share in the dominant subspace")
    right.set_ylim(-0.02, 1.02)
    _name_paths(figure, points)
    style.finish_steps(left, ends[left])
    style.finish_steps(right, ends[right])
    return figure


@matplotlib.rc_context(style.STYLE)
def change_figure(points: list[dict]) -> Figure:
    """How far the dominant subspace turns between successive points."""
    figure, (left, right) = style.new_figure(1, 2, (10.4, 4))
    later = [point for point in points if point["change"]]
    ends = []
    for path, line in path_styles(points).items():
        values = _draw(left, later, path, "-", line.color, "change", "overlap")
        if len(values):
            ends.append((values[-1], _label(path), vars(line)))
        for key, dashes in (("drift", "-"), ("alignment", ":")):
            _draw(right, later, path, dashes, line.color, "change", key)
    left.set_ylim(-0.02, 1.02)
    left.set_ylabel("overlap with the subspace before")
    right.set_ylabel(r"drift (full); $\chi_k$ of the way between (dotted)")
    right.set_ylim(bottom=0)
    style.finish_steps(left, ends)
    right.set_xlabel("step")
    return figure


@matplotlib.rc_context(style.STYLE)
def block_figure(points: list[dict]) -> Figure:
    """The largest eigenvalue of each block, and its share of the dominant vectors."""
    figure, (left, right) = style.new_figure(1, 2, (10.4, 4))
    names = [*points[0]["blocks"]]
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    ends, tops = [], []
    for name, color in zip(names, colors):
        for path in _paths(points):
            drawn = {"marker": ".", "color": color, "linestyle": _dashes(points, path)}
            steps, values = _series(points, path, "blocks", name, "eigenvalues")
            left.plot(steps, values[:, 0], **drawn)
            tops.append(values[:, 0])
            steps, mass = _series(points, path, "blocks", name, "mass")
            right.plot(steps, mass.mean(axis=1), **drawn)
        end = np.mean(_numbers(points[-1]["blocks"][name]["mass"]))
        ends.append((end, style.shorten(name, 20), {"color": color}))
    style.log_or_symlog(left, np.concatenate(tops))
    left.set_ylabel(r"$\lambda_1$ of the diagonal block")
    left.set_xlabel("step")
    right.set_ylabel("share of the dominant eigenvectors")
    right.set_ylim(-0.02, 1.02)
    _name_paths(figure, points)
    style.finish_steps(right, ends)
    return figure


@matplotlib.rc_context(style.STYLE)
def rank_figure(points: list[dict]) -> Figure:
    """The share of the eigenvectors that a cut to low rank keeps, at the last point."""
    figure, (left, right) = style.new_figure(1, 2, (10.4, 4), share=True)
    found = points[-1]["rank_profile"]
    ranks, matrices = found["ranks"], found["leaves"]
    whole = _numbers(found["whole"])
    for row, color in zip(whole, style.LineStyle("#0072B2").shades(len(whole))):
        left.plot(ranks, row, ".-", color=color, linewidth=1.2)
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(matrices)))
    for (name, shares), color in zip(matrices.items(), colors):
        label = style.shorten(name, 24)
        right.plot(ranks, _numbers(shares).mean(axis=0), ".-", color=color, label=label)
    for axes in (left, right):
        axes.set(xscale="log", xlabel="rank of each matrix", ylim=(-0.02, 1.02))
        axes.set_xticks(ranks, ranks)
        axes.minorticks_off()
    left.set_ylabel("kept share, by eigenvector")
    right.set_ylabel("kept share, by matrix")
    if 0 < len(matrices) <= SHOWN_MATRICES:
        right.legend(fontsize=8)
    return figure


@matplotlib.rc_context(style.STYLE)
def slice_figure(points: list[dict]) -> Figure:
    """The loss around the last point: along lines, and over two planes."""
    found = points[-1]["slices"]
    offsets, planes = _numbers(found["offsets"]), found["planes"]
    figure, (first, *others) = style.new_figure(1, 1 + len(planes), (10.4, 3.6))
    colors = ("#D55E00", "#E69F00", "#0072B2", "#56B4E9")
    for (name, losses), color in zip(found["lines"].items(), colors):
        label = _DIRECTIONS.get(name, name)
        first.plot(offsets, _numbers(losses), color=color, label=label)
    first.legend(fontsize=8)
    first.set(xlabel="distance", ylabel="loss")
    first.set_title(style.plain(style.shorten(points[-1]["name"], 30)), loc="left")
    labels = {"across": _DIRECTIONS["bulk gradient"], "dominant": r"$u_2$"}
    for axes, (name, losses) in zip(others, planes.items()):
        drawn = axes.contourf(offsets, offsets, _numbers(losses).T, 16, cmap="viridis")
        axes.plot(0, 0, "+", color="white", ms=9)
        axes.set(xlabel=r"along $u_1$", ylabel=f"along {labels[name]}", aspect="equal")
        axes.grid(visible=False)
        figure.colorbar(drawn, ax=axes, shrink=0.8, label="loss")
    return figure


def selected(points: list[dict]) -> list[dict]:
    """Up to `SHOWN` points over the whole length, with the first and the last."""
    places = np.linspace(0, len(points) - 1, min(SHOWN, len(points)))
    return [points[round(place)] for place in places]


def smoothed(point: dict) -> tuple[np.ndarray, np.ndarray]:
    """A grid over the spectrum of a point, and the density there."""
    nodes, weights = (
        jnp.asarray(_numbers(point["density"][key])) for key in ("nodes", "weights")
    )
    found = SpectralDensity(nodes, weights, point["num_params"], jnp.int32(0))
    width = found.width / 3  # for outliers that stand apart
    low, high = jnp.min(nodes) - 10 * width, jnp.max(nodes) + 10 * width
    grid = jnp.linspace(low, high, 800)
    return np.asarray(grid), np.asarray(found.density(grid, width).value)


def _paths(points):
    return list(dict.fromkeys(point["path"] for point in points))


def _dashes(points, path):
    """The dashes of a path, for figures whose colours do not stand for paths."""
    dashes = "-", *style.DASHES
    return dashes[_paths(points).index(path) % len(dashes)]


def _name_paths(figure, points):
    """Adds a legend of the dashes if there are several paths."""
    paths = _paths(points)
    if len(paths) > 1:
        lines = [
            Line2D([], [], color=style.INK, linestyle=_dashes(points, path))
            for path in paths
        ]
        style.legend(figure, [style.plain(_label(path)) for path in paths], lines)


def _label(path):
    return style.shorten(path or "all points", 20)


def _numbers(values):
    return np.array(values, float)  # None becomes NaN


def _series(points, path, *keys):
    """Steps and values along a path."""
    chosen = [point for point in points if point["path"] == path]
    values = [functools.reduce(dict.get, keys, point) for point in chosen]
    return np.array([point["step"] for point in chosen], int), _numbers(values)


def _draw(axes, points, path, dashes, color, *keys):
    """Draws the values along a path, and returns them."""
    steps, values = _series(points, path, *keys)
    axes.plot(steps, values, linestyle=dashes, marker=".", color=color)
    return values
