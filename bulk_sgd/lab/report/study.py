"""Reads the sweeps of a study.

A study is a folder of sweeps, one per axis, as `scripts/reproduce.sh` leaves it; the
workdir of one sweep is a study of one axis.
"""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import re
from typing import Any

import numpy as np

from bulk_sgd.lab.files import identities, record
from bulk_sgd.lab.report.formatting import exact
from bulk_sgd.lab.report.outcomes import outcome
from bulk_sgd.lab.report.results import RunResults, Summary, read_run
from bulk_sgd.lab.sweep import grid
from bulk_sgd.lab.sweep import workdir as workdir_lib
from bulk_sgd.lab.sweep.grid import LABEL
from bulk_sgd.lab.sweep.tuning import Tuning
from bulk_sgd.lab.sweep.workdir import FILE, cell_folder


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over the seeds that gave a finite number."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values) -> "Spread":
        """The spread of an iterable of numbers."""
        finite = np.array([v for v in values if v is not None and math.isfinite(v)])
        if not finite.size:
            return cls(math.nan, math.nan, 0)
        deviation = float(finite.std(ddof=1)) if finite.size > 1 else math.nan
        return cls(float(finite.mean()), deviation, finite.size)

    @classmethod
    def of_ratios(cls, values) -> "Spread":
        """The geometric mean, and the deviation of the logs around it."""
        logs = cls.of(math.log(v) for v in values if math.isfinite(v) and v > 0)
        mean = math.exp(logs.mean)
        return cls(mean, mean * logs.deviation, logs.count)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell: what it sets, its status, and its run if it has begun."""

    index: int
    settings: dict[str, Any]
    status: str
    run: RunResults | None

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of its arms."""
        return self.run.arms if self.run else ()

    def outcome(self, arm: str) -> dict[str, float]:
        """The numbers of an arm, see `outcomes.outcome`."""
        return self._outcomes[arm]

    @functools.cached_property
    def _outcomes(self):
        return {arm: outcome(self.run, arm) for arm in self.arms}


@dataclasses.dataclass(frozen=True)
class Axis:
    """One sweep: its cells, grouped by what they set beside the seed."""

    name: str
    title: str
    about: str
    cells: list[Cell]
    tune: Tuning | None = None
    grown: bool = False  # by cells of a later command

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that cells set, but for the seed."""
        fields = dict.fromkeys(f for cell in self.cells for f in cell.settings)
        return tuple(field for field in fields if field not in ("seed", LABEL))

    @property
    def varied(self) -> tuple[str, ...]:
        """The fields that have several values."""
        return _varied(self.fields, self.cells)

    @functools.cached_property
    def groups(self) -> dict[str, list[Cell]]:
        """The cells of each setting by label; they differ in their seeds alone."""
        settings: dict[str, list[Cell]] = {}
        for cell in self.cells:
            without_seed = {k: v for k, v in cell.settings.items() if k != "seed"}
            key = json.dumps(without_seed, sort_keys=True)
            settings.setdefault(key, []).append(cell)
        groups = _by_values(list(settings.values()), self.fields)
        labels = [self._label(cells[0]) for cells in groups]
        if len({*labels}) < len(labels):
            labels = [self._label(cells[0], str) for cells in groups]
        return dict(zip(labels, groups))

    @property
    def values(self) -> list[float] | None:
        """The settings as numbers, where the axis varies one numeric field."""
        if len(self.fields) != 1:
            return None
        (field,) = self.fields
        values = [cells[0].settings.get(field) for cells in self.groups.values()]
        numeric = all(type(value) in (int, float) for value in values)
        return [float(value) for value in values] if numeric else None

    def is_flag(self, field: str) -> bool:
        """Whether some cell sets the field to True or False."""
        return any(type(cell.settings.get(field)) is bool for cell in self.cells)

    @property
    def is_numeric(self) -> bool:
        """Whether settings differ only in numbers or lists of numbers."""
        found = [cells[0].settings for cells in self.groups.values()]
        labels = any(LABEL in settings for settings in found)
        values = [x.get(field, "") for x in found for field in self.varied]
        return bool(values) and not labels and all(map(_is_numeric, values))

    @functools.cached_property
    def summaries(self) -> dict[str, Summary]:
        """Each arm of any cell, in order, as the first cell that has it left it."""
        found = {}
        for cell in self.cells:
            for arm in cell.arms:
                found.setdefault(arm, cell.run.summary(arm))
        return found

    @property
    def shares_forks(self) -> bool:
        """Whether some loss at a fork is common to all settings that have forked."""
        known = [{c.run.fork_loss for c in x if c.run} for x in self.groups.values()]
        known = [{loss for loss in x if math.isfinite(loss)} for x in known]
        return bool(set.intersection(*(list(filter(None, known)) or [{0.0}])))

    @property
    def own(self) -> tuple[str, ...]:
        """Names of the numbers that the user's functions measured in any cell."""
        return tuple(dict.fromkeys(x for c in self.cells if c.run for x in c.run.own))

    def measured(self, key: str) -> bool:
        """Whether any cell has this number of `Cell.outcome`."""
        found = (c.outcome(arm) for c in self.cells for arm in c.arms)
        return any(math.isfinite(numbers.get(key, math.nan)) for numbers in found)

    def over_seeds(self, label: str, arm: str, key: str) -> list[float]:
        """One number of `Cell.outcome` for each seed of a setting that has the arm."""
        cells = [cell for cell in self.groups[label] if arm in cell.arms]
        return [cell.outcome(arm).get(key, math.nan) for cell in cells]

    def spread(self, label: str, arm: str, key: str, *, log=False) -> Spread:
        """The same as a `Spread`; with `log` the geometric one."""
        spread = Spread.of_ratios if log else Spread.of
        return spread(self.over_seeds(label, arm, key))

    def _label(self, cell, write=None):
        """The label of a cell, and its values that vary among cells of that label."""
        label, write = cell.settings.get(LABEL), write or show
        alike = [c for c in self.cells if c.settings.get(LABEL) == label]
        varied = _varied(self.fields, alike)
        shown = {f: cell.settings[f] for f in varied if f in cell.settings}
        texts = [write(value) for value in shown.values()]
        # With its name where another field could be meant, or if the field is a flag.
        others = len(varied) > 1 and any(type(x) is not str for x in shown.values())
        if others or any(map(self.is_flag, shown)):
            texts = [f"{short_name(f)} {text}" for f, text in zip(shown, texts)]
        return ", ".join([label, *texts] if label else texts) or "base"


def _varied(fields, cells):
    values = lambda field: {json.dumps(cell.settings.get(field)) for cell in cells}
    return tuple(field for field in fields if len(values(field)) > 1)


def _by_values(groups, fields):
    """Sorts settings by their numbers: a sweep that grew has its new ones last."""
    found = [cells[0].settings for cells in groups]
    if any(LABEL in x or {*fields} - {*x} for x in found):
        return groups
    ranks = {}
    for field in fields:
        values = [x[field] for x in found]
        if all(map(_is_numeric, values)):
            values = sorted(values)
        ranks[field] = [json.dumps(value) for value in values]
    place = lambda x: [ranks[field].index(json.dumps(x[field])) for field in fields]
    return sorted(groups, key=lambda cells: place(cells[0].settings))


def _is_numeric(value):
    """Whether a value is a number or a list of numbers."""
    if isinstance(value, list):
        return all(map(_is_numeric, value))
    return type(value) in (int, float)


def read_study(workdir) -> list[Axis]:
    """The axes of a folder that is a sweep or holds some, else a FileNotFoundError."""
    workdir = pathlib.Path(workdir)
    if (workdir / FILE).exists():
        return [_read_axis(workdir)]
    folders = sorted(path.parent for path in workdir.glob(f"*/{FILE}"))
    if not folders:
        raise FileNotFoundError(
            f"No {FILE} in {workdir} or its folders: expected a sweep or a study."
        )
    return [_read_axis(folder) for folder in folders]


def is_study(workdir) -> bool:
    """Whether a folder is a sweep or holds sweeps, rather than a single run."""
    workdir = pathlib.Path(workdir)
    return (workdir / FILE).exists() or any(workdir.glob(f"*/{FILE}"))


def _read_axis(folder):
    content, cells = workdir_lib.read(folder), []
    for index, settings in enumerate(content["cells"] + content["added"]):
        run, workdir = None, cell_folder(folder, index)
        status = "failed" if (workdir / "error.txt").exists() else "pending"
        # Not begun, or failed before its first row.
        with contextlib.suppress(FileNotFoundError, ValueError):
            run = _as_asked(read_run(workdir), content.get("config"), settings)
            status = str(run.info.get("status"))
        cells.append(Cell(index, settings, status, run))
    tune = content["tune"] and Tuning(**content["tune"])
    words = folder.name, content["name"], content["about"]
    return Axis(*words, cells, tune, content["grown"])


def _as_asked(run, base, settings):
    """The run, interrupted if its sweep has grown and the run has not.

    Its arms would be compared with arms of more steps.
    """
    config = run.info.get("config")
    if not base or not config:  # of early versions
        return run
    grown = identities.changes(config, grid.override(base, settings))
    if not grown:
        return run
    arms = run.info.get("arms") or {}
    if "config.num_steps" in grown:
        status = {record.COMPLETE: record.INTERRUPTED}
        now = lambda entry: status.get(entry.get("status"), entry.get("status"))
        arms = {arm: entry | {"status": now(entry)} for arm, entry in arms.items()}
    info = run.info | {"status": record.INTERRUPTED, "arms": arms}
    return dataclasses.replace(run, info=info)


def one_arm_each(groups: dict[str, list[Cell]]) -> bool:
    """Whether each setting has at most one arm, so that its label names the arm."""
    return all(len({a for c in cells for a in c.arms}) < 2 for cells in groups.values())


def short_name(field: str) -> str:
    """A dotted field in words."""
    group, _, last = field.rpartition(".")
    name = _WORDS.get(field) or (group if last == "name" and group else last)
    return name.replace("_", " ")


# Fields whose last part says too little.
_WORDS = {
    "num_steps": "steps",
    "data.num_train": "training examples",
    "data.name": "data set",
    "model.hidden": "hidden widths",
    "subspace.data": "curvature data",
    "subspace.refresh_every": "refresh interval",
    "subspace.keep": "what is kept",
    "switch.step": "fork at step",
    "switch.alignment": "fork at alignment",
}


def show(value) -> str:
    """A value as text: only the last part of a path, only the ends of a long tuple."""
    if isinstance(value, list):
        shown = value if len(value) <= 4 else [*value[:2], "…", value[-1]]
        words = any(isinstance(item, str) for item in value)
        return (", " if words else "×").join(map(show, shown))
    if isinstance(value, str):
        return re.split(r"[/:]", value.rstrip("/"))[-1] or value
    return exact(value) if type(value) in (int, float) else str(value)
