"""Measures the points of a training one after another, and keeps what is finished."""

import functools
import sys
from collections.abc import Iterable, Iterator

from bulk_sgd.curvature import blocks
from bulk_sgd.curvature.hessian import CURVATURES
from bulk_sgd.curvature.objective import Objective
from bulk_sgd.lab.analysis.examine import examine, locate
from bulk_sgd.lab.analysis.point import Known, Point, Settings
from bulk_sgd.lab.analysis.store import Store
from bulk_sgd.lab.devices import signals
from bulk_sgd.lab.files.progress import Progress


def analyze(
    points: Iterable,
    value_fn,
    folder=None,
    settings: Settings | None = None,
    *,
    total: int | None = None,
    progress: bool = False,
    about: dict | None = None,
) -> list[dict]:
    """Measures the curvature of a loss at a sequence of points, and between them.

    Points are taken one at a time, so an iterator may read them from disk; memory holds
    one subspace per path. A point is compared with the one before it on its path. The
    first point of a path is compared with the last one of the first path, where it
    forked.

    Args:
      points: iterable of `Point`s or of pairs (name, params).
      value_fn: the loss at params, an `Objective` or any scalar function. Only an
        `Objective` has Gauss-Newton and functional parts.
      folder: keeps each point as it is finished, and all of them in `analysis.json` at
        the end. A later call takes a point from there unless its parameters have
        changed; the loss must stay the same. None keeps nothing.
      settings: the `Settings`.
      total: number of points, for the time left, where `points` has no length.
      progress: whether to show it.
      about: more top level keys of `analysis.json`, such as the record of a `run`.

    Returns:
      One dict per point, see `docs/analysis.md`.

    Raises:
      ValueError: two points share a name, a setting is out of range, the folder holds
        points of other settings or of a run of another config, or there is a folder and
        `settings.by` is a function.

    Example:
      >>> import jax.numpy as jnp
      >>> from bulk_sgd.lab.analysis.analyze import analyze
      >>> from bulk_sgd.lab.analysis.point import Settings
      >>> loss = lambda p: 4 * p["sharp"] ** 2 + p["flat"] ** 4
      >>> points = [(f"step {i}", {"sharp": jnp.array(0.5**i), "flat": jnp.array(1.0)})
      ...           for i in range(2)]
      >>> first, second = analyze(points, loss, settings=Settings(rank=1, block_rank=1))
      >>> [round(x, 3) for x in first["blocks"]["sharp"]["eigenvalues"]]
      [8.0]
      >>> round(second["change"]["distance"], 3), second["change"]["since"]
      (0.5, 'step 0')
    """
    settings = settings or Settings()
    about = about or {}
    store = folder and Store(folder, settings, about.get("run", {}).get("config"))
    if total is None:
        total = len(points) if hasattr(points, "__len__") else None
    results = []
    known: dict[str, tuple[Point, Known | None]] = {}  # the last point of each path
    with Progress(None, progress, unit="matvec") as bar:
        for point in _named(points):
            costs = _costs(point, value_fn, settings)
            bar.expect(total and total * sum(costs.values()))
            tick = functools.partial(_tick, bar, point.name, costs)
            first = next(iter(known.values()), (None, None))
            before, subspace = known.get(point.path, first)
            result = store and store.load(point, before)
            if result:
                known[point.path] = point, None
                bar.skip(sum(costs.values()))
            else:
                if before and not subspace:
                    subspace = locate(before, value_fn, settings)
                result, found = examine(point, value_fn, settings, subspace, tick)
                known[point.path] = point, found
                if store:
                    store.save(result, point, before)
            results.append(result)
    if store:
        store.finish(results, about)
    return results


def _named(points) -> Iterator[Point]:
    """Points of pairs; each with its own name, and a step."""
    names = set()
    for index, point in enumerate(points):
        point = point if isinstance(point, Point) else Point(*point)
        if point.name in names:
            raise ValueError(
                f"two points are named {point.name!r}; each must have its own name."
            )
        names.add(point.name)
        yield point._replace(step=index) if point.step is None else point


def _costs(point, value_fn, settings):
    num_blocks = len(blocks.masks(point.params, settings.by))
    num_operators = len(CURVATURES) if isinstance(value_fn, Objective) else 1
    return settings.costs(num_blocks, num_operators)


def _tick(bar, name, costs, part):
    """Shows that a part is done; ends the process if a signal asked for it."""
    bar.advance(costs[part], point=name, part=part)
    if signals.wanted():
        sys.exit(128 + signals.wanted())
