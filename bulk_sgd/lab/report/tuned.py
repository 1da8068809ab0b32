"""Tuned sweeps: rows at their best values, and what they cost against a reference.

A row is an arm in a setting. Costs count from the first step, the prefix included. They
leave out the curvature of the prefix, and of SGD, because it is only measured.
"""

import dataclasses
import math

import numpy as np

from bulk_sgd.lab.files import record
from bulk_sgd.lab.report.outcomes import reach
from bulk_sgd.lab.report.results import PREFIX, SGD
from bulk_sgd.lab.report.study import Axis, Cell, one_arm_each
from bulk_sgd.lab.sweep import tuning
from bulk_sgd.lab.sweep.grid import LABEL

UNITS = "steps", "matvecs", "seconds"


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: the losses that select its best value, and the cells of that value.

    `losses` holds, for each value, a loss per seed, infinite if the run diverged.
    """

    name: str
    arm: str
    losses: dict[float, list[float]]
    best: float | None
    cells: list[Cell]

    @property
    def at_edge(self) -> bool:
        """Whether the best value is the first or last of the grid."""
        return self.best in (min(self.losses), max(self.losses))


@dataclasses.dataclass(frozen=True)
class Curve:
    """A run of a row from its first step: losses and costs, each of shape (n,)."""

    train_loss: np.ndarray
    test_loss: np.ndarray
    steps: np.ndarray
    matvecs: np.ndarray
    seconds: np.ndarray

    @classmethod
    def of(cls, cell: Cell, arm: str) -> "Curve":
        """The prefix up to the fork, then the arm."""
        run, free = cell.run, cell.run.summary(arm).method == SGD
        before = run.steps(PREFIX) < (run.fork_step or 0)
        join = lambda first, then: np.concatenate([first[before], then])
        whole = lambda key: join(run.series(PREFIX, key), run.series(arm, key))
        idle = lambda name: run.series(name, "seconds_curvature")
        spent = run.series(PREFIX, "seconds") - idle(PREFIX)
        seconds = run.series(arm, "seconds") - (idle(arm) if free else 0)
        prefix = run.summary(PREFIX)
        return cls(
            whole("train_loss"),
            whole("test_loss"),
            join(run.steps(PREFIX), run.steps(arm)),
            join(0 * spent, run.series(arm, "matvecs") * (not free)),
            join(spent, prefix.seconds - prefix.seconds_curvature + seconds),
        )

    def cost(self, by: str, target: float, window: int = 1) -> dict[str, float]:
        """What it took to reach a loss, infinite if never, and the test loss there.

        The loss is a mean over the last `window` rows.
        """
        losses = getattr(self, by)
        lasts = (losses[max(0, i - window) : i] for i in range(1, len(losses) + 1))
        losses = np.array([np.mean(last) for last in lasts])
        found = {unit: reach(losses, getattr(self, unit), target) for unit in UNITS}
        if math.isnan(found["steps"]):
            return dict.fromkeys(UNITS, math.inf) | {"test_loss": math.nan}
        test = np.interp(found["steps"], self.steps, self.test_loss)
        return found | {"test_loss": float(test)}


def rows(axis: Axis) -> list[Row]:
    """The rows of a tuned sweep, with the values whose cells have all ended."""
    field, found = axis.tune.field, []
    value = {cell.index: cell.settings[field] for cell in axis.cells}
    settings = _without(axis, field).groups
    arms, alone = list(axis.summaries), one_arm_each(settings)
    for label, cells in settings.items():
        ends, at = {}, {}
        for cell in cells:
            ended = cell.status in record.ENDED
            losses = tuning.losses(cell.run.workdir, axis.tune) if ended else {}
            ends[cell.index] = losses
            at.setdefault(value[cell.index], []).append(cell)
        for arm in arms:
            losses = {x: [ends[c.index].get(arm) for c in at[x]] for x in at}
            losses = {x: found for x, found in losses.items() if None not in found}
            if losses:
                best = axis.tune.best(losses)
                names = [label] * (len(settings) > 1 or alone)
                names += [axis.summaries[arm].label] * (not alone)
                found.append(Row(": ".join(names), arm, losses, best, at.get(best, [])))
    return found


def reference(axis: Axis, found: list[Row]) -> Row | None:
    """The row that the others are compared with: the one named, SGD, or the first."""
    known = [row for row in found if row.cells]
    label = lambda row: row.cells[0].settings.get(LABEL, "")
    named = [row for row in known if axis.tune.is_reference(label(row), row.arm)]
    plain = [row for row in known if axis.summaries[row.arm].method == SGD]
    return next(iter([*named, *plain, *known]), None)


def winners(axis: Axis) -> Axis:
    """The axis without the tuned field: for each row, the cells of its best value."""
    if axis.tune is None:
        return axis
    best: dict[int, list[str]] = {}
    for row in rows(axis):
        for cell in row.cells:
            best.setdefault(cell.index, []).append(row.arm)
    bare = _without(axis, axis.tune.field)
    cells = [_only(cell, best[cell.index]) for cell in bare.cells if cell.index in best]
    return dataclasses.replace(bare, cells=cells)


def costs(axis: Axis, row: Row, plain: Row) -> list[dict[str, float]]:
    """What the row took to reach the reference's last loss, over the reference's own.

    A dict per seed: the ratio by unit, the row's matvecs as `own_matvecs`, the
    `test_loss` at that point, `test_share`, the ratio of this `test_loss` to the
    reference's at its end, and the row's last loss as `end`. Seeds are paired. A
    seed that the reference lacks is compared with the reference's median. If the loss
    or the data differ from the reference's, all but the end is NaN.
    """
    seed = lambda cell: cell.settings.get("seed")
    ends = {seed(c): x for c, x in zip(plain.cells, plain.losses[plain.best])}
    ends = {name: end for name, end in ends.items() if math.isfinite(end)}
    middle = float(np.median([*ends.values()]))
    own = {}
    for cell in plain.cells:
        if seed(cell) in ends:
            own[seed(cell)] = _cost(axis.tune, cell, plain.arm, ends[seed(cell)])
    typical = {
        key: float(np.median([c[key] for c in own.values()]))
        for key in (*UNITS, "test_loss")
    }
    found = []
    for cell, end in zip(row.cells, row.losses[row.best]):
        target = ends.get(seed(cell), middle) if alike(row, plain) else math.nan
        cost = _cost(axis.tune, cell, row.arm, target)
        theirs = own.get(seed(cell), typical)
        ratios = {u: cost[u] / theirs[u] if theirs[u] else math.nan for u in UNITS}
        test, theirs = cost["test_loss"], theirs["test_loss"]
        more = {"own_matvecs": cost["matvecs"], "test_loss": test}
        more["test_share"] = test / theirs if theirs else math.nan
        found.append(ratios | more | {"end": end})
    return found


def alike(row: Row, other: Row) -> bool:
    """Whether the losses of two rows compare: the same loss, of the same data."""
    infos = [found.cells[0].run.info for found in (row, other)]
    data = lambda info: (info.get("config") or {}).get("data")
    first, second = ((info.get("loss_label"), data(info)) for info in infos)
    return first == second


def _cost(tune, cell, arm, target):
    if math.isnan(target):
        return dict.fromkeys((*UNITS, "test_loss"), math.nan)
    # As `tuning.losses` has it, which takes no row of the prefix.
    window = min(tune.rows, len(cell.run.rows.get(arm, [])) or 1)
    return Curve.of(cell, arm).cost(tune.by, target, window)


def _without(axis, field):
    bare = lambda cell: {k: v for k, v in cell.settings.items() if k != field}
    cells = [dataclasses.replace(cell, settings=bare(cell)) for cell in axis.cells]
    return dataclasses.replace(axis, cells=cells)


def _only(cell, arms):
    """The cell with some of its arms."""
    run = cell.run
    entries = {arm: run.info["arms"][arm] for arm in run.arms if arm in arms}
    kept = {arm: run.rows[arm] for arm in (PREFIX, *entries) if arm in run.rows}
    run = dataclasses.replace(run, info=run.info | {"arms": entries}, rows=kept)
    return dataclasses.replace(cell, run=run)
