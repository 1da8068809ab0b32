"""Reads what a run leaves in its workdir: `run.json` and `metrics.jsonl`.

Works on runs that are complete, still going, interrupted or failed: whatever is
missing or not finite reads as NaN. Knows neither figures nor pages.
"""

import dataclasses
import functools
import json
import math
import pathlib
from typing import Any

import numpy as np

PREFIX = "prefix"
_METHODS = {(1.0, 1.0): "sgd", (1.0, 0.0): "dom_sgd", (0.0, 1.0): "bulk_sgd"}


@dataclasses.dataclass(frozen=True)
class Summary:
    """Where one arm (or the prefix) stands; NaN where nothing is known.

    `train_loss`, `test_accuracy`, `sharpness` (λ_1) and `sharpness_ratio` (η·λ_1) are
    the last finite values, `loss_ratio` is the loss over a positive loss at the switch
    and `alignment` the mean χ_k of the updates after the switch.
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
        """`'sgd'`, `'dom_sgd'` or `'bulk_sgd'` by the scales; None between them."""
        return _METHODS.get(self.scales)

    @property
    def curvature_share(self) -> float:
        """Part of the seconds spent in curvature, 0 to 1; NaN without seconds."""
        return self.seconds_curvature / self.seconds if self.seconds else math.nan

    @property
    def seconds_per_step(self) -> float:
        """Seconds over steps; NaN before the first step."""
        return self.seconds / self.steps if self.steps else math.nan


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as read from its workdir, see `read_run`.

    `info` is run.json, `rows` the metric rows of the prefix and of each arm by step,
    `unreadable` the number of lines in metrics.jsonl that had to be left out.
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

    @property
    def rank(self) -> int | None:
        """Size k of the dominant subspace; None if not recorded."""
        rank = self.info.get("rank")
        return rank if _is_int(rank) else None

    @property
    def switch_step(self) -> int | None:
        """Step at which the arms fork off; None while there was no switch."""
        return (self.info.get("switch") or {}).get("step")

    @functools.cached_property
    def switch_loss(self) -> float:
        """Training loss at the switch; NaN while there was no switch."""
        if self.switch_step is None:
            return math.nan
        prefix = self.steps(PREFIX) <= self.switch_step
        losses = self.series(PREFIX, "train_loss")[prefix]
        starts = [
            self.series(arm, "train_loss")[self.steps(arm) == self.switch_step]
            for arm in self.arms
        ]
        # The arms measure at the very switch; the prefix's last row may be older.
        exact = np.concatenate([*starts, []])
        return last_finite(exact if np.isfinite(exact).any() else losses)

    def steps(self, arm: str) -> np.ndarray:
        """Global steps of the rows of `arm` (or `PREFIX`), ascending, shape (n,)."""
        return np.array([row["step"] for row in self.rows.get(arm, [])], int)

    def series(self, arm: str, key: str) -> np.ndarray:
        """One metric along `steps(arm)`, shape (n,), NaN where null or missing."""
        return np.array([_number(row.get(key)) for row in self.rows.get(arm, [])])

    def rates(self, arm: str) -> np.ndarray:
        """η along `steps(arm)`, shape (n,), that of run.json where a row has none."""
        logged = self.series(arm, "learning_rate")
        start = _number(self.info.get("learning_rate"))
        return np.where(np.isnan(logged), start, logged)

    @property
    def stability(self) -> float:
        """The largest stable ηλ_1 of the optimizer, 2 for SGD; NaN if it has none."""
        return _number(self.info.get("stability_threshold", 2.0))

    def eigenvalues(self, arm: str) -> np.ndarray:
        """λ_1 … λ_k along `steps(arm)`, shape (n, k), NaN where null or missing."""
        rows = [row.get("eigenvalues") or [] for row in self.rows.get(arm, [])]
        table = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
        for i, row in enumerate(rows):
            table[i, : len(row)] = [_number(value) for value in row]
        return table

    def summary(self, arm: str) -> Summary:
        """What is known about `arm` (or `PREFIX`) at its last row."""
        return self._summaries[arm]

    @functools.cached_property
    def _summaries(self) -> dict[str, Summary]:
        return {arm: self._summarize(arm) for arm in (PREFIX, *self.arms)}

    def _summarize(self, arm: str) -> Summary:
        entry = (self.info.get("arms") or {}).get(arm) or {}
        if arm == PREFIX:
            entry = {"label": "Prefix", "formula": "before the switch"}
            entry |= self.info.get("prefix") or {}
        steps = self.steps(arm)
        start = 0 if arm == PREFIX else self.switch_step or 0
        loss = last_finite(self.series(arm, "train_loss"))
        after = self.series(arm, "alignment_update")[steps > start]
        after = after[np.isfinite(after)]

        def counter(key):
            # Counters only grow, and either file may be the older one after a kill.
            return np.nanmax([_number(entry.get(key)), 0, *self.series(arm, key)])

        last_step = int(max([entry.get("last_step") or start, *steps]))
        return Summary(
            name=arm,
            label=str(entry.get("label") or arm),
            formula=str(entry.get("formula") or ""),
            scales=(
                _number(entry.get("dominant_scale")),
                _number(entry.get("bulk_scale")),
            ),
            status=str(entry.get("status") or "unknown"),
            last_step=last_step,
            steps=last_step - start,
            train_loss=loss,
            loss_ratio=loss / self.switch_loss if self.switch_loss > 0 else math.nan,
            test_accuracy=last_finite(self.series(arm, "test_accuracy")),
            alignment=after.mean() if after.size and arm != PREFIX else math.nan,
            sharpness=last_finite(self.series(arm, "sharpness")),
            sharpness_ratio=last_finite(self.series(arm, "sharpness_ratio")),
            matvecs=int(counter("matvecs")),
            failed_refreshes=int(counter("failed_refreshes")),
            seconds=float(counter("seconds")),
            seconds_curvature=float(counter("seconds_curvature")),
        )


def read_run(workdir: str | pathlib.Path) -> Run:
    """Reads `run.json` and `metrics.jsonl` of a run.

    Rows come out sorted by step; a step written twice (a resumed run) counts once,
    as last written. A torn last line is ignored, other unreadable lines are counted.

    Args:
      workdir: the folder the run wrote to.

    Raises:
      FileNotFoundError: run.json or metrics.jsonl is missing.
      ValueError: run.json is not a JSON object, or there is no metric row.

    Example:
      >>> run = read_run("runs/mnist")  # doctest: +SKIP
      >>> run.series("bulk_sgd", "train_loss")  # doctest: +SKIP
    """
    workdir = pathlib.Path(workdir)
    expected = "expected the workdir of a run, which holds run.json and metrics.jsonl"
    for name in ("run.json", "metrics.jsonl"):
        if not (workdir / name).is_file():
            raise FileNotFoundError(f"No {name} in {workdir}: {expected}.")
    info = _json_object((workdir / "run.json").read_text("utf-8", "replace"))
    if info is None:
        raise ValueError(f"run.json in {workdir} is no JSON object: {expected}.")

    by_step: dict[str, dict[int, dict]] = {}
    text = (workdir / "metrics.jsonl").read_text("utf-8", "replace")
    *lines, last = text.split("\n")
    lines = [line for line in lines if line.strip()]
    # Without its line end the last line may be torn, which is no damage to report.
    lines += [last] if _json_object(last) else []
    unreadable = 0
    for row in map(_json_object, lines):
        if row and isinstance(row.get("arm"), str) and _is_int(row.get("step")):
            by_step.setdefault(row["arm"], {})[row["step"]] = row
        else:
            unreadable += 1
    if not by_step:
        raise ValueError(
            f"No metric row in metrics.jsonl in {workdir}: expected one JSON object "
            "per line with at least the keys arm and step."
        )
    sorted_rows = {a: [r for _, r in sorted(s.items())] for a, s in by_step.items()}
    return Run(workdir, info, sorted_rows, unreadable)


def last_finite(values: np.ndarray) -> float:
    """The last finite entry of an array of shape (n,); NaN if there is none."""
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else math.nan


def _number(value) -> float:
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return math.nan


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _json_object(text: str) -> dict | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
