"""Reads `run.json` and `metrics.jsonl` of a run, complete or not.

What is missing or not finite becomes NaN.
"""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import numpy as np

from bulk_sgd.lab.files import metrics
from bulk_sgd.lab.files.identities import compact
from bulk_sgd.lab.files.record import PREFIX

SGD, DOM_SGD, BULK_SGD = "sgd", "dom_sgd", "bulk_sgd"
_METHODS = {(1.0, 1.0): SGD, (1.0, 0.0): DOM_SGD, (0.0, 1.0): BULK_SGD}


@dataclasses.dataclass(frozen=True)
class Summary:
    """Where one arm (or the prefix) stands; NaN where nothing is known.

    `train_loss`, `test_accuracy`, `sharpness` (λ_1) and `sharpness_ratio` (η·λ_1) are
    the last finite values, `loss_ratio` is the loss over the loss at the fork if that
    is positive, and `alignment` the mean χ_k of the updates after the fork. `scales`
    are NaN for a guarded arm, which is no point of the (a, b) plane.
    """

    name: str
    label: str
    formula: str
    scales: tuple[float, float]
    status: str
    last_step: int
    steps: int
    train_loss: float
    loss_ratio: float
    test_accuracy: float
    alignment: float
    sharpness: float
    sharpness_ratio: float
    matvecs: int
    failed_refreshes: int
    seconds: float
    seconds_curvature: float

    @property
    def method(self) -> str | None:
        """`'sgd'`, `'dom_sgd'` or `'bulk_sgd'` by the scales; None for others."""
        return _METHODS.get(self.scales)


@dataclasses.dataclass(frozen=True)
class RunResults:
    """What `read_run` finds in the workdir of a run.

    `info` is run.json, `rows` holds the metric rows of the prefix and of each arm by
    step, and `unreadable` counts the lines of metrics.jsonl that were left out. Methods
    take the name of an arm with or without white space.
    """

    workdir: pathlib.Path
    info: dict[str, Any]
    rows: dict[str, list[dict[str, Any]]]
    unreadable: int = 0

    @functools.cached_property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms in the order of run.json, started or not."""
        names = [*(self.info.get("arms") or {}), *self.rows]
        return tuple(name for name in dict.fromkeys(names) if name != PREFIX)

    @functools.cached_property
    def own(self) -> tuple[str, ...]:
        """Names of the numbers that functions of the user measured, in their order."""
        return self._own(0)

    @functools.cached_property
    def own_lists(self) -> tuple[str, ...]:
        """Names of the lists of numbers that functions of the user measured."""
        return self._own(1)

    def _own(self, ndim):
        rows = [row for rows in self.rows.values() for row in rows]
        values = {}  # the first known ones: rows without a subspace may lack some
        for key in (key for key in rows[0] if key.startswith("own/")):
            known = (row[key] for row in rows if row.get(key) is not None)
            values[key] = next(known, None)
        keys = [key for key, value in values.items() if np.ndim(value) == ndim]
        measures = (self.info.get("config") or {}).get("measures") or {}
        order = [path.rpartition(":")[2] for path in measures.get("own") or ()]
        names = {key: key.split("/")[1] for key in keys}
        place = lambda key: (*order, names[key]).index(names[key])
        return tuple(sorted(keys, key=place))  # rows have them by the alphabet

    @property
    def doubts(self) -> list[str]:
        """Sentences about settings that may be mistakes, as the run printed them."""
        return self.info.get("doubts") or []

    @property
    def rank(self) -> int | None:
        """Size k of the dominant subspace; None if not recorded."""
        rank = self.info.get("rank")
        return rank if _is_int(rank) else None

    @property
    def fork_step(self) -> int | None:
        """Step at which the arms fork off; None before that."""
        return (self.info.get("switch") or {}).get("step")

    @property
    def fork_text(self) -> str:
        """Where and why the arms forked off, as `step 800 (alignment 0.96 > 0.95)`."""
        reason = (self.info.get("switch") or {}).get("reason")
        known = reason in (None, "", f"step {self.fork_step}")
        return f"step {self.fork_step:,}" + ("" if known else f" ({reason})")

    @functools.cached_property
    def fork_loss(self) -> float:
        """Training loss at the fork; NaN before that."""
        if self.fork_step is None:
            return math.nan
        # The arms measure at the very fork; the prefix's last row may be older.
        losses = {arm: self.series(arm, "train_loss") for arm in self.arms}
        exact = [losses[arm][self.steps(arm) == self.fork_step] for arm in losses]
        exact = np.concatenate([*exact, []])
        if np.isfinite(exact).any():
            return last_finite(exact)
        until = self.steps(PREFIX) <= self.fork_step
        return last_finite(self.series(PREFIX, "train_loss")[until])

    def steps(self, arm: str) -> np.ndarray:
        """Global steps of the rows of `arm` (or `PREFIX`), ascending, shape (n,)."""
        return np.array([row["step"] for row in self._rows(arm)], int)

    def series(self, arm: str, key: str) -> np.ndarray:
        """One metric along `steps(arm)`, shape (n,), NaN where null or missing."""
        return np.array([_number(row.get(key)) for row in self._rows(arm)])

    def logged(self, arm: str, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric where it is finite, each of shape (n,)."""
        values = self.series(arm, key)
        finite = np.isfinite(values)
        return self.steps(arm)[finite], values[finite]

    def is_logged(self, key: str) -> bool:
        """Whether any arm, or the prefix, has a finite value of a metric."""
        return any(self.logged(arm, key)[0].size for arm in self.rows)

    def after_fork(self, arm: str, key: str) -> np.ndarray:
        """The finite values of a metric after the fork, shape (n,)."""
        steps, values = self.logged(arm, key)
        return values[steps > (self.fork_step or 0)]

    def rates(self, arm: str) -> np.ndarray:
        """η along `steps(arm)`, shape (n,); where a row has none, run.json's."""
        logged = self.series(arm, "learning_rate")
        start = _number(self.info.get("learning_rate"))
        return np.where(np.isnan(logged), start, logged)

    @property
    def stability(self) -> float:
        """The largest stable ηλ_1 of the optimizer, 2 for SGD; NaN if it has none."""
        return _number(self.info.get("stability_threshold", 2.0))

    def eigenvalues(self, arm: str) -> np.ndarray:
        """λ_1 … λ_k along `steps(arm)`, shape (n, k), NaN where null or missing."""
        return self.lists(arm, "eigenvalues")

    def lists(self, arm: str, key: str) -> np.ndarray:
        """A list of numbers along `steps(arm)`, shape (n, m), NaN as in `series`."""
        rows = [row.get(key) or [] for row in self._rows(arm)]
        table = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
        for i, row in enumerate(rows):
            table[i, : len(row)] = [_number(value) for value in row]
        return table

    def summary(self, arm: str) -> Summary:
        """What is known about `arm` (or `PREFIX`) at its last row."""
        return self._summaries[compact(arm)]

    def _rows(self, arm):
        return self.rows.get(compact(arm), [])

    @functools.cached_property
    def _summaries(self):
        return {arm: self._summarize(arm) for arm in (PREFIX, *self.arms)}

    def _summarize(self, arm):
        entry = (self.info.get("arms") or {}).get(arm) or {}
        if arm == PREFIX:
            entry = {"label": "Prefix", "formula": "before the fork"}
            entry |= self.info.get("prefix") or {}
        start = 0 if arm == PREFIX else self.fork_step or 0
        last_step = int(max([entry.get("last_step") or start, *self.steps(arm)]))
        after = self.after_fork(arm, "alignment_update")
        last = lambda key: last_finite(self.series(arm, key))
        loss = last("train_loss")

        def counter(key):
            # Counters only grow, and after a kill either file may be the older one.
            return np.nanmax([_number(entry.get(key)), 0, *self.series(arm, key)])

        scales = (_number(entry.get(f"{part}_scale")) for part in ("dominant", "bulk"))
        if entry.get("guarded", arm.startswith("accelerated")):  # old records lack it
            scales = math.nan, math.nan
        return Summary(
            name=arm,
            label=str(entry.get("label") or arm),
            formula=str(entry.get("formula") or ""),
            scales=tuple(scales),
            status=str(entry.get("status") or "unknown"),
            last_step=last_step,
            steps=last_step - start,
            train_loss=loss,
            loss_ratio=loss / self.fork_loss if self.fork_loss > 0 else math.nan,
            test_accuracy=last("test_accuracy"),
            alignment=after.mean() if after.size and arm != PREFIX else math.nan,
            sharpness=last("sharpness"),
            sharpness_ratio=last("sharpness_ratio"),
            matvecs=int(counter("matvecs")),
            failed_refreshes=int(counter("failed_refreshes")),
            seconds=float(counter("seconds")),
            seconds_curvature=float(counter("seconds_curvature")),
        )


def read_run(workdir: str | pathlib.Path) -> RunResults:
    """Reads `run.json` and `metrics.jsonl` of a run.

    Rows come out sorted by step, as `metrics.read` finds them.

    Raises:
      FileNotFoundError: run.json or metrics.jsonl is missing.
      ValueError: run.json is not a JSON object, or there is no metric row.
    """
    workdir = pathlib.Path(workdir)
    expected = "expected the workdir of a run, which holds run.json and metrics.jsonl"
    for name in ("run.json", "metrics.jsonl"):
        if not (workdir / name).is_file():
            raise FileNotFoundError(f"No {name} in {workdir}: {expected}.")
    info = metrics.json_object((workdir / "run.json").read_text("utf-8", "replace"))
    if info is None:
        raise ValueError(f"run.json in {workdir} is not a JSON object: {expected}.")

    rows, unreadable = metrics.read(workdir)
    if not rows:
        raise ValueError(
            f"No metric row in metrics.jsonl in {workdir}: expected one JSON object "
            "per line with at least the keys arm and step."
        )
    return RunResults(workdir, info, rows, unreadable)


def last_finite(values: np.ndarray) -> float:
    """The last finite entry of an array of shape (n,); NaN if there is none."""
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else math.nan


def _number(value) -> float:
    known = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if known else math.nan


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
