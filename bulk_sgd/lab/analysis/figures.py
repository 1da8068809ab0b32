"""Figures of an analysis: spectra, subspaces, energies and layers along training.

Each takes the list of points that `analyze` returns, and returns a figure.
"""

import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bulk_sgd.lab.report.style import (
    METHOD_COLORS,
    OPERATOR_STYLES,
    OTHER_COLORS,
    PREFIX_STYLE,
    STYLE,
    LineStyle,
    finish_steps,
    log_or_symlog,
    new_figure,
    plain,
    shorten,
)
from bulk_sgd.lab.training.run import PREFIX
from bulk_sgd.spectra.density import SpectralDensity

SHOWN = 4  # points whose whole density is drawn


def path_styles(points: list[dict]) -> dict[str, LineStyle]:
    """One style per path; a method has the colour it has in reports of runs."""
    known = {PREFIX: PREFIX_STYLE}
    known |= {name: LineStyle(color) for name, color in METHOD_COLORS.items()}
    others = [path for path in _paths(points) if path not in known]
    for index, path in enumerate(others):
        known[path] = LineStyle(OTHER_COLORS[index % len(OTHER_COLORS)])
    return {path: known[path] for path in _paths(points)}


@matplotlib.rc_context(STYLE)
def eigenvalue_figure(points: list[dict]) -> Figure:
    """λ_1 … λ_k, and χ of the gradient and of the update."""
    figure, (left, right) = new_figure(1, 2, (10.4, 4))
    ends = []
    for path, style in path_styles(points).items():
        steps, values = _series(points, path, lambda p: p["eigenvalues"])
        for line, color in zip(values.T, style.shades(values.shape[1])):
            left.plot(steps, line, ".-", color=color, linewidth=1.2)
        ends.append((values[-1, 0], _label(path), vars(style)))
        for key, marker in (("gradient", "-"), ("update", ":")):
            line = _series(points, path, lambda p, k=key: p["alignment"].get(k))
            right.plot(*line, marker, color=style.color, marker=".")
    log_or_symlog(left, np.array([_numbers(p["eigenvalues"]) for p in points]))
    left.set_ylabel("eigenvalues of the Hessian")
    right.set_ylim(-0.02, 1.02)
    right.set_ylabel(r"$\chi_k$ of gradient (full) and update (dotted)")
    finish_steps(left, ends)
    right.set_xlabel("step")
    return figure


@matplotlib.rc_context(STYLE)
def density_figure(points: list[dict]) -> Figure:
    """The spectral density at up to `SHOWN` points, with the top eigenvalues marked."""
    shown = selected(points)
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    figure, panels = new_figure(rows, columns, (10.4, 0.8 + 2.6 * rows), share=True)
    for axes in panels[len(shown) :]:
        axes.remove()
    styles = path_styles(points)
    for axes, point in zip(panels, shown):
        color = styles[point["path"]].color
        grid, density = smoothed(point)
        # No part of a spectrum is less than one eigenvalue.
        floor = 1e-2 / point["num_params"] / np.ptp(grid)
        axes.fill_between(grid, floor, np.maximum(density, floor), color=color,
                          alpha=0.25, linewidth=0)  # fmt: skip
        axes.plot(grid, np.maximum(density, floor), color=color, linewidth=1.2)
        axes.set_yscale("log")
        values, count = _numbers(point["eigenvalues"]), point["outliers"] or 0
        for chosen, face in ((values[:count], color), (values[count:], "white")):
            axes.plot(chosen, [floor] * len(chosen), "v", color=color, ms=6,
                      markerfacecolor=face, clip_on=False)  # fmt: skip
        axes.set_title(plain(shorten(point["name"], 37)), loc="left")
    figure.supxlabel("eigenvalue", fontsize=STYLE["font.size"])
    figure.supylabel("density of the Hessian's spectrum", fontsize=STYLE["font.size"])
    return figure


@matplotlib.rc_context(STYLE)
def energy_figure(points: list[dict]) -> Figure:
    """Traces and Frobenius shares of H, G and F, one panel pair for all paths."""
    figure, (left, right) = new_figure(1, 2, (10.4, 4))
    ends = {left: [], right: []}
    for operator in points[0]["energies"]:
        symbol, color = OPERATOR_STYLES[operator][0], OPERATOR_STYLES[operator][1].color
        for path in _paths(points):
            of = lambda key, p=path, o=operator: _series(
                points, p, lambda point: point["energies"][o][key]
            )
            steps, error = of("trace_error")
            for axes, key in ((left, "trace"), (right, "frobenius_share")):
                _, values = of(key)
                axes.plot(steps, values, _dashes(points, path), marker=".", color=color)
                if axes is left:
                    low, high = values - 2 * error, values + 2 * error
                    axes.fill_between(
                        steps, low, high, color=color, alpha=0.2, linewidth=0
                    )
                if path == points[-1]["path"]:
                    ends[axes].append((values[-1], symbol, {"color": color}))
    left.set_ylabel("trace")
    right.set_ylabel("Frobenius share in the dominant subspace")
    right.set_ylim(-0.02, 1.02)
    finish_steps(left, ends[left])
    finish_steps(right, ends[right])
    return figure


@matplotlib.rc_context(STYLE)
def change_figure(points: list[dict]) -> Figure:
    """How far the dominant subspace turns between successive points."""
    figure, (left, right) = new_figure(1, 2, (10.4, 4))
    later = [point for point in points if point["change"]]
    ends = []
    for path, style in path_styles(points).items():
        for axes, key, marker in (
            (left, "overlap", "-"),
            (right, "drift", "-"),
            (right, "alignment", ":"),
        ):
            steps, values = _series(later, path, lambda p, k=key: p["change"][k])
            axes.plot(steps, values, marker, marker=".", color=style.color)
            if axes is left and len(values):
                ends.append((values[-1], _label(path), vars(style)))
    left.set_ylim(-0.02, 1.02)
    left.set_ylabel("overlap with the subspace before")
    right.set_ylabel(r"drift (full); $\chi_k$ of the way between (dotted)")
    right.set_ylim(bottom=0)
    finish_steps(left, ends)
    right.set_xlabel("step")
    return figure


@matplotlib.rc_context(STYLE)
def block_figure(points: list[dict]) -> Figure:
    """The largest eigenvalue of each block, and its share of the dominant vectors."""
    figure, (left, right) = new_figure(1, 2, (10.4, 4))
    names = [*points[0]["blocks"]]
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    ends = []
    for name, color in zip(names, colors):
        for path in _paths(points):
            dashes = _dashes(points, path)
            for axes, measure in (
                (left, lambda block: block["eigenvalues"][0]),
                (right, lambda block: np.mean(_numbers(block["mass"]))),
            ):
                steps, values = _series(
                    points, path, lambda p, n=name, m=measure: m(p["blocks"][n])
                )
                axes.plot(steps, values, dashes, marker=".", color=color)
        mass = np.mean(_numbers(points[-1]["blocks"][name]["mass"]))
        ends.append((mass, shorten(name, 20), {"color": color}))
    tops = [_number(b["eigenvalues"][0]) for p in points for b in p["blocks"].values()]
    log_or_symlog(left, np.array(tops))
    left.set_ylabel(r"$\lambda_1$ of the diagonal block")
    left.set_xlabel("step")
    right.set_ylabel("share of the dominant eigenvectors")
    right.set_ylim(-0.02, 1.02)
    finish_steps(right, ends)
    return figure


@matplotlib.rc_context(STYLE)
def slice_figure(points: list[dict]) -> Figure:
    """The loss around the last point: along lines, and over two planes."""
    point = points[-1]
    found = point["slices"]
    offsets = _numbers(found["offsets"])
    planes = found["planes"]
    figure, panels = new_figure(1, 1 + len(planes), (10.4, 3.6))
    colors = ("#D55E00", "#E69F00", "#0072B2", "#56B4E9")
    for (name, losses), color in zip(found["lines"].items(), colors):
        panels[0].plot(offsets, _numbers(losses), color=color, label=name)
    panels[0].legend(fontsize=8)
    panels[0].set(xlabel="distance", ylabel="loss")
    panels[0].set_title(plain(shorten(point["name"], 30)), loc="left")
    labels = {"across": "bulk part of the gradient", "dominant": r"$u_2$"}
    for axes, (name, losses) in zip(panels[1:], planes.items()):
        drawn = axes.contourf(offsets, offsets, _numbers(losses).T, 16, cmap="viridis")
        axes.plot(0, 0, "+", color="white", ms=9)
        axes.set(xlabel=r"along $u_1$", ylabel=f"along {labels[name]}", aspect="equal")
        axes.grid(visible=False)
        figure.colorbar(drawn, ax=axes, shrink=0.8)
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
    """Dotted for paths other than the first."""
    return "-" if path == _paths(points)[0] else ":"


def _label(path):
    return shorten(path or "all points", 20)


def _number(value):
    return np.nan if value is None else float(value)


def _numbers(values):
    return np.array(values, float)  # None becomes NaN


def _series(points, path, measure):
    """Steps and values along a path."""
    chosen = [point for point in points if point["path"] == path]
    steps = np.array([point["step"] for point in chosen], int)
    return steps, _numbers([measure(point) for point in chosen])
