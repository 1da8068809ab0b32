"""Tuned sweeps: each compared row has its best value of one field.

A row is an arm in a setting. A setting is what a cell sets besides the seed and the
tuned field.
"""

import dataclasses
import functools
import json
import math
import statistics

import numpy as np

from bulk_sgd import checks
from bulk_sgd.lab.files import identities, metrics, record
from bulk_sgd.lab.sweep import grid
from bulk_sgd.lab.sweep.workdir import cell_folder

BY = "train_loss", "test_loss"


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How a sweep is tuned: the `tune` of its file, where a string means its `field`.

    The loss of a run is a mean over the arm's last rows of metrics; it is infinite if
    the run diverged. The best value of a row has the lowest median loss over seeds.
    """

    field: str  # dotted, a positive number that all cells set
    by: str = "train_loss"  # or "test_loss"
    rows: int = 1  # how many last rows the loss is averaged over
    widen: int = 4  # the most values that may be added to a setting's grid
    reference: str = ""  # the row to compare others with: its label, arm or both

    def __post_init__(self):
        checks.one_of("tune.by", self.by, BY)
        checks.integer("tune.rows", self.rows, 1)
        checks.integer("tune.widen", self.widen, 0)

    def is_reference(self, label: str, arm: str) -> bool:
        """Whether the reference names this row."""
        names = arm, label, f"{label}: {arm}"
        named = identities.compact(self.reference)
        return bool(named) and named in map(identities.compact, names)

    def best(self, losses: dict[float, list[float]]) -> float | None:
        """The value with the lowest median loss; None if at least half diverged."""
        medians = {value: statistics.median(found) for value, found in losses.items()}
        best = min(sorted(medians), key=medians.get)
        return best if math.isfinite(medians[best]) else None


def check(tune: Tuning | str | None, cells: list[grid.Cell], configs) -> Tuning | None:
    """The `Tuning`, after a check against the cells and, unless None, their configs.

    Raises:
      ValueError: if a cell does not set the field to a positive number, a setting has
        fewer than two values of it, or no row has the name of the reference.

    >>> cells = grid.values("optimizer.learning_rate", (0.1, 0.2))
    >>> check("optimizer.learning_rate", cells, None).widen
    4
    """
    if isinstance(tune, str):
        tune = Tuning(tune)
    if tune is None:
        return None
    if not isinstance(tune, Tuning):
        raise ValueError(f"tune is {tune!r}; it must be a Tuning, or a field's name.")
    for index, cell in enumerate(cells):
        value = cell.get(tune.field)
        if not (type(value) in (int, float) and 0 < value < math.inf):
            raise ValueError(
                f"{tune.field} is tuned, but cell {index} has {value!r}; every cell "
                "must set it to a positive number."
            )
    for indices in _settings(cells, tune).values():
        values = {cells[i][tune.field] for i in indices}
        if len(values) < 2:
            raise ValueError(
                f"{tune.field} is tuned, but has the single value {values.pop()!r} in "
                f"cell {indices[0]}; each setting must have at least two."
            )
    rows = [
        (cell.get(grid.LABEL, ""), arm)
        for cell, config in zip(cells, configs or [])
        for arm in config.arms
    ]
    if tune.reference and rows and not any(tune.is_reference(*row) for row in rows):
        known = dict.fromkeys(name for row in rows for name in row if name)
        raise ValueError(
            f"tune.reference is {tune.reference!r}; it must be one of "
            f"{', '.join(known)}, or a label and an arm as LABEL: ARM."
        )
    return tune


def losses(workdir, tune: Tuning) -> dict[str, float]:
    """The loss of each arm of a run that has ended, infinite where it diverged."""
    found = record.read(workdir)
    if not found or found["status"] not in record.ENDED:
        return {}
    rows, _ = metrics.read(workdir)
    ends = {}
    for arm, entry in found["arms"].items():
        last = [row.get(tune.by) for row in rows.get(arm, [])[-tune.rows :]]
        known = entry["status"] == record.COMPLETE and None not in last and last
        ends[arm] = float(np.mean(last)) if known else math.inf
    return ends


def widened(
    workdir, cells: list[grid.Cell], given: list[grid.Cell], tune: Tuning, base
):
    """Further cells, if the best value of a row is the first or last of its grid.

    The step to the new value has the ratio of the outermost two, rounded for an integer
    field. Cells that are not `given` come from earlier calls. If no value of a row
    trained, lower ones are tried.
    """
    whole = type(functools.reduce(getattr, tune.field.split("."), base)) is int
    ends = [losses(cell_folder(workdir, i), tune) for i in range(len(cells))]
    more = []
    for indices in _settings(cells, tune).values():
        by_value = {}
        for index in indices:
            by_value.setdefault(cells[index][tune.field], []).append(index)
        first = {cells[i][tune.field] for i in indices if cells[i] in given}
        grid_values = sorted(by_value)
        left = tune.widen - (len(grid_values) - len(first))
        if not all(ends[index] for index in indices):
            continue  # one failed; the same command tries it again
        for new, edge in _outer(grid_values, by_value, ends, tune)[: max(left, 0)]:
            new = max(1, round(new)) if whole else new
            if new != edge:
                more += [{**cells[i], tune.field: new} for i in by_value[edge]]
    return more


def _outer(values, by_value, ends, tune):
    """The values to add to a grid, each with the one at its edge.

    The reference comes first, because all others are compared with it.
    """
    arms = dict.fromkeys(arm for found in ends for arm in found)
    edges = []
    for arm in sorted(arms, key=lambda arm: not tune.is_reference("", arm)):
        found = {
            value: [ends[i][arm] for i in indices if arm in ends[i]]
            for value, indices in by_value.items()
        }
        if all(found.values()):
            best = tune.best(found)
            edges.append(values[0] if best is None else best)
    inner = {values[0]: values[1], values[-1]: values[-2]}
    return [
        (float(f"{edge * edge / inner[edge]:.6g}"), edge)
        for edge in dict.fromkeys(edges)
        if edge in inner
    ]


def _settings(cells, tune):
    """The indices of the cells of each setting."""
    found: dict[str, list[int]] = {}
    for index, cell in enumerate(cells):
        fixed = {k: v for k, v in cell.items() if k not in ("seed", tune.field)}
        found.setdefault(json.dumps(fixed, sort_keys=True), []).append(index)
    return found
