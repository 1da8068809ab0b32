"""Reads the sweeps of a study and says how each method fared, over seeds.

A study is a folder of sweeps, one per axis, as `scripts/reproduce.sh` leaves it; the
workdir of one sweep is a study of one axis. With L the training loss and a fork at L_0
from which SGD reaches L_SGD < L_0, an arm that ends at L has

  loss ratio     L / L_0
  progress       (L_0 − L) / (L_0 − L_SGD), the share of SGD's decrease
  speed-up       steps that SGD took to 90 % of its decrease over those that the arm
                 took to the same loss; 0 where the arm never got there
  sharpness      η λ_1 at its end

Of a diverged arm nothing is known but that, a speed-up of 0, and its stable rate.

Nothing here depends on how long anything took, so that an interrupted sweep gives the
numbers of an undisturbed one.
"""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
from typing import Any

import numpy as np

from bulk_sgd.lab.report.results import Run, last_finite, read_run
from bulk_sgd.lab.sweep.workdir import FILE, cell_folder

SGD, DOM_SGD, BULK_SGD = "sgd", "dom_sgd", "bulk_sgd"
SYMBOLS = {"hessian": "H", "gauss_newton": "G", "functional_hessian": "F"}
# The share of SGD's decrease where speed is compared: SGD's last loss is passed late,
# and by chance.
TARGET = 0.9


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
        """The geometric mean, and the deviation that the logs have around it."""
        logs = cls.of(math.log(v) for v in values if math.isfinite(v) and v > 0)
        mean = math.exp(logs.mean)
        return cls(mean, mean * logs.deviation, logs.count)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell: what it sets, where it stands, and its run where there is one."""

    index: int
    settings: dict[str, Any]
    status: str
    run: Run | None

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of its arms."""
        return self.run.arms if self.run else ()

    def outcome(self, arm: str) -> dict[str, float]:
        """The numbers of an arm by name; NaN for what is not known.

        Keys: loss_ratio, progress, speed_up, matvec_speed_up, test_accuracy,
        alignment, gradient_energy, descent_ratio, sharpness_ratio, batch_sharpness
        (times η), stable_rate, stable_ratio (over that of SGD), diverged (0 or 1).
        """
        return self._outcomes[arm]

    @functools.cached_property
    def _outcomes(self):
        return {arm: _outcome(self.run, arm) for arm in self.arms}


@dataclasses.dataclass(frozen=True)
class Axis:
    """One sweep: cells grouped by what they set apart from the seed."""

    name: str
    title: str
    about: str
    cells: list[Cell]

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that cells set, without the seed."""
        fields = dict.fromkeys(f for cell in self.cells for f in cell.settings)
        return tuple(field for field in fields if field != "seed")

    @functools.cached_property
    def groups(self) -> dict[str, list[Cell]]:
        """The cells of each setting, which differ in their seeds alone, by label."""
        settings: dict[str, list[Cell]] = {}
        for cell in self.cells:
            without_seed = {k: v for k, v in cell.settings.items() if k != "seed"}
            key = json.dumps(without_seed, sort_keys=True)
            settings.setdefault(key, []).append(cell)
        return {self._label(cells[0]): cells for cells in settings.values()}

    @property
    def values(self) -> list[float] | None:
        """The settings as numbers, where the axis varies one numeric field."""
        if len(self.fields) != 1:
            return None
        field = self.fields[0]
        values = [cells[0].settings.get(field) for cells in self.groups.values()]
        numeric = all(type(value) in (int, float) for value in values)
        return [float(value) for value in values] if numeric else None

    @functools.cached_property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms of any cell, in order."""
        return tuple(dict.fromkeys(arm for cell in self.cells for arm in cell.arms))

    def over_seeds(self, label: str, arm: str, key: str) -> list[float]:
        """One number of `Cell.outcome` for each seed of a setting that has the arm."""
        cells = [cell for cell in self.groups[label] if arm in cell.arms]
        return [cell.outcome(arm)[key] for cell in cells]

    def spread(self, label: str, arm: str, key: str, *, log=False) -> Spread:
        """The same as a `Spread`; with `log` the geometric one."""
        spread = Spread.of_ratios if log else Spread.of
        return spread(self.over_seeds(label, arm, key))

    def _label(self, cell):
        varied = [
            field
            for field in self.fields
            if len({json.dumps(c.settings.get(field)) for c in self.cells}) > 1
        ]
        shown = {f: cell.settings[f] for f in varied if f in cell.settings}
        told = [_show(value) for value in shown.values()]
        # With its name where another field could be meant.
        if len(varied) > 1 and any(type(value) is not str for value in shown.values()):
            told = [f"{short_name(f)} {text}" for f, text in zip(shown, told)]
        return ", ".join(told) or "base"


def read_study(workdir) -> list[Axis]:
    """The axes in a folder, which is a sweep or holds some.

    Raises:
      FileNotFoundError: if there is none.
    """
    workdir = pathlib.Path(workdir)
    if (workdir / FILE).exists():
        return [_read_axis(workdir)]
    folders = sorted(path.parent for path in workdir.glob(f"*/{FILE}"))
    if not folders:
        raise FileNotFoundError(
            f"No {FILE} in {workdir} or its folders: expected a sweep or a study."
        )
    return [_read_axis(folder) for folder in folders]


def has_energies(axis: Axis) -> bool:
    """Whether any cell measured curvature energies along SGD."""
    return any(
        SGD in cell.arms
        and np.isfinite(cell.run.series(SGD, "hessian/frobenius_share")).any()
        for cell in axis.cells
    )


def is_study(workdir) -> bool:
    """Whether a folder is a sweep or holds some, rather than a single run."""
    workdir = pathlib.Path(workdir)
    return (workdir / FILE).exists() or any(workdir.glob(f"*/{FILE}"))


def _read_axis(folder):
    content = json.loads((folder / FILE).read_text())
    cells = []
    for index, settings in enumerate(content["cells"]):
        run = None
        # Not begun, or failed before its first row.
        with contextlib.suppress(FileNotFoundError, ValueError):
            run = read_run(cell_folder(folder, index))
        status = str(run.info.get("status")) if run else "pending"
        failed = cell_folder(folder, index) / "error.txt"
        if run is None and failed.exists():
            status = "failed"
        cells.append(Cell(index, settings, status, run))
    return Axis(folder.name, content["name"], content["about"], cells)


def _outcome(run: Run, arm: str) -> dict[str, float]:
    summary = run.summary(arm)
    arms = run.info.get("arms") or {}
    # Of a prefix that diverged no arm begins.
    lost = (run.info.get("prefix") or {}).get("status") == "diverged"
    diverged = lost or summary.status == "diverged"
    ended = diverged or summary.status == "complete"
    loss, fork = summary.train_loss, run.switch_loss
    sgd = run.summary(SGD) if SGD in run.arms else None
    reached = sgd.train_loss if sgd and sgd.status == "complete" else math.nan
    decrease = fork - reached if reached < fork else math.nan
    target = fork - TARGET * decrease
    after = run.steps(arm) > (run.switch_step or 0)

    def mean(key, power=1):
        values = run.series(arm, key)[after] ** power
        values = values[np.isfinite(values)]
        return float(values.mean()) if values.size else math.nan

    rate = _stable(arms.get(arm, {}))
    found = {
        "loss_ratio": _ratio(loss, fork),
        "progress": _ratio(fork - loss, decrease),
        "speed_up": _speed_up(run, arm, target, "steps"),
        "matvec_speed_up": _speed_up(run, arm, target, "matvecs"),
        "test_accuracy": summary.test_accuracy,
        "alignment": summary.alignment,
        "gradient_energy": mean("alignment_gradient", 2),
        "descent_ratio": mean("descent_ratio"),
        "sharpness_ratio": summary.sharpness_ratio,
        "batch_sharpness": last_finite(
            run.rates(arm) * run.series(arm, "batch_sharpness")
        ),
    }
    if summary.status != "complete":
        found = dict.fromkeys(found, math.nan)
    if diverged:  # it got nowhere
        found |= {"speed_up": 0.0, "matvec_speed_up": 0.0}
    found |= {
        "stable_rate": rate,
        "stable_ratio": _ratio(rate, _stable(arms.get(SGD, {}))),
        "diverged": float(diverged),
    }
    return found if ended else dict.fromkeys(found, math.nan)


def _stable(entry):
    """Middle of the interval around the largest stable rate, on a log scale.

    NaN where the rate lies outside of the interval that was searched.
    """
    low, high = entry.get("stable_rate"), entry.get("unstable_rate")
    return math.sqrt(low * high) if low and high else math.nan


def _speed_up(run, arm, target, unit):
    if math.isnan(target):
        return math.nan
    theirs = _first_reach(run, SGD, target, unit)
    ours = _first_reach(run, arm, target, unit)
    return 0.0 if math.isnan(ours) else _ratio(theirs, ours)


def _first_reach(run, arm, target, unit):
    """Steps (or matvecs) from the fork to the first crossing of a loss, or NaN.

    Between rows the loss is linear.
    """
    losses = run.series(arm, "train_loss")
    counts = run.series(arm, "matvecs") if unit == "matvecs" else run.steps(arm)
    counts = np.asarray(counts, float) - counts[0] if len(counts) else counts
    below = np.flatnonzero(losses <= target)
    if not below.size:
        return math.nan
    i = below[0]
    if i == 0:
        return float(counts[0])
    part = (losses[i - 1] - target) / (losses[i - 1] - losses[i])
    return float(counts[i - 1] + part * (counts[i] - counts[i - 1]))


def _ratio(above, below):
    return above / below if below else math.nan


def short_name(field: str) -> str:
    """The last part of a dotted field, in words."""
    return field.split(".")[-1].replace("_", " ")


def _show(value):
    if isinstance(value, list):
        return "×".join(str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
