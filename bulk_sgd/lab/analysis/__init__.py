"""The curvature along any training: spectra, traces, subspaces, layers and slices.

`analyze` takes points, names with parameters, and a loss. The command
`python -m bulk_sgd.analyze --workdir=RUN` takes the checkpoints of a run and makes a
page of them. What is measured, and every key of the result: `docs/analysis.md`.
"""

import sys
from collections.abc import Iterable

from bulk_sgd.curvature import blocks
from bulk_sgd.curvature.hessian import CURVATURES
from bulk_sgd.curvature.objective import Objective
from bulk_sgd.lab.analysis.examine import examine, locate
from bulk_sgd.lab.analysis.point import Point, Settings
from bulk_sgd.lab.analysis.store import Store
from bulk_sgd.lab.devices import signals
from bulk_sgd.lab.files.progress import Progress

__all__ = ["Point", "Settings", "analyze"]


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
    """Looks at the curvature of a loss at a sequence of points, and between them.

    Points are taken one at a time, so that an iterator may read them from disk; what
    stays in memory is one subspace per path. A point is compared with the one before
    it on its path, and the first of a path with the last of the first path, from which
    it forked.

    Args:
      points: iterable of `Point`s or of pairs (name, params).
      value_fn: the loss at params, an `Objective` or any scalar function. Only an
        `Objective` has Gauss-Newton and functional parts.
      folder: where each point is kept as it is finished, and not looked at again by a
        later call unless its parameters have changed, and where all of them end up in
        `analysis.json`; None keeps nothing. The loss must stay the same.
      settings: the `Settings`.
      total: number of points, for the time left, where `points` has no length.
      progress: whether to show it.
      about: more top level keys of `analysis.json`, such as the record of a `run`.

    Returns:
      One dict per point, see `docs/analysis.md`.

    Raises:
      ValueError: if two points have one name, a setting is out of its range, or the
        folder holds points of other settings or of a run of another config, or there
        is one and `settings.by` is a function.

    Example:
      >>> import jax.numpy as jnp, bulk_sgd.lab.analysis
      >>> loss = lambda p: 4 * p["sharp"] ** 2 + p["flat"] ** 4
      >>> points = [(f"step {i}", {"sharp": jnp.array(0.5**i), "flat": jnp.array(1.0)})
      ...           for i in range(2)]
      >>> settings = bulk_sgd.lab.analysis.Settings(rank=1, block_rank=1)
      >>> first, second = bulk_sgd.lab.analysis.analyze(points, loss, settings=settings)
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
    operators = len(CURVATURES) if isinstance(value_fn, Objective) else 1
    results, lasts = [], {}  # the last point of each path, and its subspace if known
    with Progress(None, progress, unit="matvec") as bar:
        for index, point in enumerate(points):
            point = point if isinstance(point, Point) else Point(*point)
            if point.step is None:
                point = point._replace(step=index)
            if point.name in {result["name"] for result in results}:
                raise ValueError(
                    f"two points are named {point.name!r}; each must have its own name."
                )
            num_blocks = len(blocks.masks(point.params, settings.by))
            costs = settings.costs(num_blocks, operators)
            bar.expect(total and total * sum(costs.values()))

            def tick(part, name=point.name, costs=costs):
                bar.advance(costs[part], point=name, part=part)
                if signals.wanted():
                    sys.exit(128 + signals.wanted())

            before, known = lasts.get(point.path) or next(
                iter(lasts.values()), (None, None)
            )
            result = store and store.load(point, before)
            if result:
                lasts[point.path] = point, None
                for part in costs:
                    tick(part)
            else:
                if before and not known:
                    known = locate(before, value_fn, settings)
                result, known = examine(point, value_fn, settings, known, tick)
                lasts[point.path] = point, known
                if store:
                    store.save(result, point, before)
            results.append(result)
    if store:
        store.finish(results, about)
    return results
