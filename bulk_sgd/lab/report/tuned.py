"""Tuned sweeps: rows at their best values, and what they cost against a reference.

A row is an arm in a setting. Costs count from the first step, the prefix included. They
leave out the curvature of the prefix, and of SGD, because it is only measured.
"""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from bulk_sgd.lab.files import record
from bulk_sgd.lab.report.outcomes import reach
from bulk_sgd.lab.report.results import PREFIX, SGD
from bulk_sgd.lab.report.study import Axis, Cell, one_arm_each
from bulk_sgd.lab.sweep import tuning
from bulk_sgd.lab.sweep.grid import LABEL

UNITS = "steps", "matvecs", "seconds"
_NEVER = dict.fromkeys(UNITS, math.inf) | {"test_loss": math.nan}


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: the losses that select its best value, and the cells of that value.

    `setting` is what its cells set besides the seed and the tuned field. `losses`
    holds, for each value, a loss per seed, infinite if the run diverged.
    """

    name: str
    arm: str
    setting: dict[str, Any]
    losses: dict[float, list[float]]
    best: float | None
    cells: list[Cell]

    @property
    def at_edge(self) -> bool:
        """Whether the best value is the first or last of the grid."""
        return self.best in (min(self.losses), max(self.losses))

    @property
    def ends(self) -> list[float]:
        """A loss per seed at the best value; all are infinite if there is none."""
        seeds = max(map(len, self.losses.values()))
        return self.losses.get(self.best, [math.inf] * seeds)


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
        """The prefix up to the fork, if there was one, then the arm."""
        run, free = cell.run, cell.run.summary(arm).method == SGD
        fork = math.inf if run.fork_step is None else run.fork_step
        before = run.steps(PREFIX) < fork
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
            return _NEVER
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
        setting = {k: v for k, v in cells[0].settings.items() if k != "seed"}
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
                name, at_best = ": ".join(names), at.get(best, [])
                found.append(Row(name, arm, setting, losses, best, at_best))
    return found


def reference(axis: Axis, found: list[Row]) -> Row | None:
    """The row that the others are compared with: the one named, else SGD or the first.

    It must have a best value. If the named row has none, no other takes its place.
    """
    known = [row for row in found if row.cells]
    plain = [row for row in known if axis.summaries[row.arm].method == SGD]
    named = [row for row in known if is_named(axis, row)]
    return next(iter(named if axis.tune.reference else [*plain, *known]), None)


def is_named(axis: Axis, row: Row) -> bool:
    """Whether the sweep names this row as its reference."""
    return axis.tune.is_reference(row.setting.get(LABEL, ""), row.arm)


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

    The row and the reference both count up to where they first reach this loss. A dict
    per seed: the ratio by unit, the row's matvecs as `own_matvecs`, the `test_loss` at
    that point, `test_share`, the ratio of this `test_loss` to the reference's last one,
    and the row's last loss as `end`. Seeds are paired. A seed that the reference lacks
    is compared with the reference's median. A seed that diverged never gets there,
    whatever it reached before: its costs are infinite. If the loss or the data differ
    from the reference's, all but the end is NaN.
    """
    seed = lambda cell: cell and cell.settings.get("seed")
    own = {}
    for cell, end in zip(plain.cells, plain.ends):
        if math.isfinite(end):
            cost = _cost(axis.tune, cell, plain.arm, end)
            last = Curve.of(cell, plain.arm).test_loss[-1]
            own[seed(cell)] = cost | {"target": end, "test_loss": last}
    keys = *UNITS, "target", "test_loss"
    typical = {key: float(np.median([c[key] for c in own.values()])) for key in keys}
    found, comparable = [], alike(row, plain)
    for cell, end in itertools.zip_longest(row.cells, row.ends):
        theirs = own.get(seed(cell), typical)
        cost = _NEVER if comparable else dict.fromkeys(_NEVER, math.nan)
        if comparable and math.isfinite(end):
            cost = _cost(axis.tune, cell, row.arm, theirs["target"])
        shares = {k: x / theirs[k] if theirs[k] else math.nan for k, x in cost.items()}
        more = {"test_share": shares["test_loss"], "test_loss": cost["test_loss"]}
        found.append(shares | more | {"own_matvecs": cost["matvecs"], "end": end})
    return found


def alike(row: Row, other: Row) -> bool:
    """Whether the losses of two rows compare: the same loss, of the same data.

    A row without a best value compares with any: it never gets anywhere.
    """
    infos = [cell.run.info for found in (row, other) for cell in found.cells[:1]]
    data = lambda info: (info.get("config") or {}).get("data")
    kinds = [(info.get("loss_label"), data(info)) for info in infos]
    return kinds[:1] == kinds[-1:]


def _cost(tune, cell, arm, target):
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
