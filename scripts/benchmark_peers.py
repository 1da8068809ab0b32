"""Top eigenpairs by bulk_sgd and by its peers: one matrix, one quality.

Everyone gets the same float32 parameters and data, all cores and a random start vector
(the JAX contestants share theirs). The quality: the true residuals of all pairs,
measured with our own products, are at most 1e-3 λ_1. A solver with a tolerance gets
1e-3. A solver that takes a number of products, or tests eigenvalues alone, gets the
smallest budget that reaches the quality; the search for it is not timed, although a
user would have to do it. The times are of a solve at new parameters, with everything
compiled or built that can be reused.
"""

import bisect
import functools
import importlib.metadata
import statistics
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from benchmark_common import RANK, TOL, interleaved, median_ratio, residuals, timed
from benchmark_contestants import PEERS, ours
from matplotlib.figure import Figure

import bulk_sgd
from bulk_sgd.lab.report import style

OURS = "bulk_sgd"
# Largest relative difference of an eigenvalue to the reference. Beyond it a solver had
# another matrix, or missed an eigenvector.
_SAME = 1e-3
_BLUE = "#0072B2"  # Bulk-SGD's colour in the other figures
_DISTRIBUTIONS = (
    *("curvlinops-for-pytorch", "hessian-eigenthings", "matfree", "pyhessian"),
    *("scipy", "torch"),
)


def measure(problem, repeats: int, peers: Sequence[str] = ()) -> dict[str, dict]:
    """One row per contestant that is installed, ours first.

    Args:
      problem: the network.
      repeats: number of rounds.
      peers: names of the peers; by default all.

    Raises:
      RuntimeError: if a contestant misses the quality.
    """
    reference = _reference(problem)
    contestants = _installed(problem, peers or PEERS)
    lengths = contestants[OURS].solve(TOL)[2]  # nobody needs many more or fewer
    chosen = {
        name: _smallest_budget(
            each,
            problem,
            reference,
            int(lengths) - RANK if each.knob == "length" else 0,
        )
        for name, each in contestants.items()
    }
    jax.clear_caches()  # so that first calls compile
    rows, calls = {}, {}
    for name, each in contestants.items():
        calls[name] = functools.partial(each.solve, chosen[name])
        found, first = timed(calls[name])
        residual, difference = _quality(each, found, problem, reference)
        if not _is_good(residual, difference):
            raise RuntimeError(
                f"{name} with {each.knob} {chosen[name]:.2g} has a residual of "
                f"{residual:.2g} λ_1 and an eigenvalue off by {difference:.2g}."
            )
        rows[name] = {
            "setting": f"{each.knob} {chosen[name]:.2g}",
            "matvecs": int(found[2]),
            "residual/λ_1": residual,
            "eigenvalue error": difference,
            "first call s": first,
        }
    seconds = interleaved(calls, repeats)
    for name, row in rows.items():
        row["seconds"] = statistics.median(seconds[name])
        row["over ours"] = median_ratio(seconds[name], seconds[OURS])
    return rows


def versions() -> dict[str, str]:
    """Versions of the peers that are installed."""
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@matplotlib.rc_context(style.STYLE)
def figure(rows: dict[str, dict]) -> Figure:
    """A bar of seconds per contestant on a log scale, with matvecs and ratio."""
    size = (8.4, 1.0 + 0.42 * len(rows))
    drawing, (axes,) = style.new_figure(1, 1, size)
    order = sorted(rows, key=lambda name: rows[name]["seconds"])
    for y, name in enumerate(order):
        row = rows[name]
        color = _BLUE if name == OURS else style.PREFIX_STYLE.color
        axes.barh(y, row["seconds"], color=color, height=0.62)
        note = f"{row['seconds']:.2g} s, {row['matvecs']} matvecs"
        note += "" if name == OURS else f", {row['over ours']:.2g}×"
        place = {"textcoords": "offset points", "va": "center", "fontsize": 8.5}
        axes.annotate(note, (row["seconds"], y), (4, 0), **place)
    seconds = [row["seconds"] for row in rows.values()]
    axes.set_xscale("log")
    axes.set_xlim(min(seconds) / 3, max(seconds) * 6)  # room for the notes
    axes.set_yticks(range(len(order)), order)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(
        rf"seconds for {RANK} eigenpairs, all residuals $\leq 10^{{-3}} \lambda_1$"
    )
    return drawing


def _installed(problem, peers):
    contestants = {OURS: ours(problem)}
    for name in peers:
        try:
            contestants[name] = PEERS[name](problem)
        except ModuleNotFoundError as error:
            print(
                f"{name} skipped: no module {error.name}. "
                "To install all peers: pip install '.[lab,bench]'"
            )
    return contestants


def _reference(problem):
    start, length = problem.start, 40 * RANK
    return bulk_sgd.top_eigenpairs(problem.matvec, start, RANK, 1e-5, length)


def _smallest_budget(each, problem, reference, near=0):
    """The first budget that reaches the quality, searched outwards from index `near`.

    A budget may cost a compilation, so few are tried.
    """

    @functools.cache
    def reaches(place):
        found = each.solve(each.budgets[place])
        return _is_good(*_quality(each, found, problem, reference))

    last = len(each.budgets) - 1
    low = high = min(near, last)
    step = 1
    while low > 0 and reaches(low):
        low, step = max(low - step, 0), 2 * step
    while high < last and not reaches(high):
        high, step = min(high + step, last), 2 * step
    found = bisect.bisect_left(range(last), True, low, high, key=reaches)
    return each.budgets[found]


def _quality(each, found, problem, reference):
    """Largest residual over λ_1, and relative difference of an eigenvalue."""
    values = np.asarray(found[0], np.float32)
    lengths = residuals(problem.matvec, values, each.as_basis(found[1]))
    exact = np.asarray(reference.eigenvalues)
    difference = np.max(np.abs(np.sort(values)[::-1] / exact - 1))
    return float(jnp.max(lengths) / exact[0]), float(difference)


def _is_good(residual, difference):
    return residual <= TOL and difference <= _SAME
