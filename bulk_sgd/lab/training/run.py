"""The files of one run: its record, and a row of metrics per dispatch."""

import contextlib
import sys
from typing import NamedTuple

import jax
import numpy as np

from bulk_sgd.curvature.hessian import CURVATURES
from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.files import metrics, record
from bulk_sgd.lab.files.metrics import MetricWriter
from bulk_sgd.lab.from_config import losses, optimizers, solvers
from bulk_sgd.lab.training.checkpoint import Checkpoints
from bulk_sgd.lab.training.experiment import Experiment
from bulk_sgd.lab.training.steps import Programs, TrainState
from bulk_sgd.linalg import basis

PREFIX = "prefix"


class Resumed(NamedTuple):
    """What a run goes on from.

    Attributes:
      state: that of the stretch under way.
      fork: that at the fork, None before it.
      story: name of the stretch, number of rows, and record at that time.
    """

    state: TrainState
    fork: TrainState | None
    story: dict


class Run(contextlib.AbstractContextManager):
    """One execution of an experiment in a workdir, as a context manager.

    On the way out it closes its files and its experiment, and records how it ended.

    Args:
      experiment: what to run.
      programs: its compiled programs.
      workdir: a folder as `record.claim` leaves it. Where it has checkpoints the run
        goes on from the newest; else what is there is moved to `attempts/`.

    Attributes:
      resumed: the `Resumed` that it goes on from, or None.
      entries: the entries of the record, of the prefix and of each arm by name.
      record: what `run.json` holds.
      rows: the rows written so far, by arm.
    """

    def __init__(self, experiment: Experiment, programs: Programs, workdir):
        self.experiment = experiment
        self.workdir = workdir
        self._programs = programs
        self._config = experiment.config
        self._every = self._config.checkpoint.every
        self._checkpoints = Checkpoints(
            workdir, self._config.checkpoint.keep, record.plain(self._config)
        )
        self.resumed = self._resume()
        self.rows = {}
        if self.resumed:
            self.record = self.resumed.story["record"]
            for row in distributed.on_first(self._cut_metrics):
                self.rows.setdefault(row["arm"], []).append(row)
        else:
            distributed.on_first(lambda: record.archive(workdir))
            self.record = self._fresh_record()
        self._writer = MetricWriter(workdir, self._config.tensorboard)
        self.entries = {PREFIX: self.record["prefix"], **self.record["arms"]}
        self.save()

    def _resume(self):
        if not self._every:
            return None
        blank = self.experiment.start(self._programs)
        found = self._checkpoints.load(blank)
        if found is None:
            return None
        state, story = found
        fork = None
        if story["name"] != PREFIX:
            fork = self._checkpoints.load_fork(blank)
            if fork is None:
                return None
        if distributed.is_first():
            where = f"{story['name']}, step {int(state.step)}"
            print(f"{self.workdir}: going on from {where}.", file=sys.stderr)
        return Resumed(state, fork, story)

    def _cut_metrics(self):
        return metrics.cut(self.workdir, self.resumed.story["rows"])

    def checkpoint(self, name: str, state: TrainState):
        """Saves where a stretch stands, if the config asks for checkpoints."""
        if self._every:
            count = sum(map(len, self.rows.values()))
            story = {"name": name, "rows": count, "record": self.record}
            self._checkpoints.save(count, state, story)

    def checkpoint_fork(self, state: TrainState):
        """Saves the state from which the arms start, if there will be checkpoints."""
        if self._every and not (self.resumed and self.resumed.fork):
            self._checkpoints.save_fork(state)

    def is_checkpoint(self, before: int, step: int) -> bool:
        """Whether a checkpoint is due after the steps from `before` to `step`."""
        return bool(self._every) and step // self._every > before // self._every

    def _fresh_record(self):
        experiment = self.experiment
        return {
            "status": record.RUNNING,
            "name": self._config.name,
            "config": record.plain(self._config),
            **record.provenance(),
            "ended": None,
            "seconds": None,
            "num_params": basis.size(experiment.params),
            "num_train": len(experiment.dataset.train_targets),
            "learning_rate": self._config.optimizer.learning_rate,
            "stability_threshold": optimizers.stability_threshold(
                self._config.optimizer, self._config.subspace.preconditioned
            ),
            "rank": self._config.subspace.rank,
            "loss_label": losses.label(self._config.loss),
            "switch": None,
            "prefix": {"status": record.PENDING, "last_step": 0},
            "arms": {
                arm.name: {
                    "label": arm.label,
                    "formula": arm.formula,
                    "dominant_scale": arm.dominant_scale,
                    "bulk_scale": arm.bulk_scale,
                    "status": record.PENDING,
                }
                for arm in experiment.arms
            },
        }

    def __exit__(self, kind, error, trace):
        if kind is not None:
            interrupted = issubclass(kind, (KeyboardInterrupt, SystemExit))
            self.end(record.INTERRUPTED if interrupted else record.FAILED)
        self._writer.close()
        self._checkpoints.close()
        self.experiment.close()

    def end(self, status: str):
        """Records how the run ended, unless it already has."""
        if self.record["status"] != record.RUNNING:
            return
        for entry in self.entries.values():
            if entry["status"] == record.RUNNING:
                entry["status"] = status
        self.record["status"] = status
        self.record["ended"] = record.now()
        self.record["seconds"] = sum(
            entry.get("seconds", 0.0) for entry in self.entries.values()
        )
        self.save()

    def save(self):
        """Writes the record."""
        record.write(self.workdir, self.record)

    def write(self, row: dict):
        """Appends a row of metrics."""
        self.rows.setdefault(row["arm"], []).append(self._writer.write(row))

    def adopt(self, name: str, rows: list[dict], entry: dict):
        """Takes over the rows and the entry of another run that shares them."""
        if name not in self.rows:
            for row in rows:
                self.write(row)
        self.entries[name].update(entry)

    def row(self, name: str, state: TrainState, trace=None) -> dict:
        """Measures a state; the fields are those of `metrics.jsonl`.

        Args:
          name: `PREFIX` or the name of an arm, whose entry is brought up to date.
          state: where it stands.
          trace: `steps.Trace` of the steps that led there.
        """
        entry = self.entries[name]
        entry.setdefault("matvecs", 0)
        entry.setdefault("failed_refreshes", 0)
        entry["last_step"] = int(state.step)
        found = self._programs.evaluate(state, self.experiment.task)
        space = state.subspace
        row = {
            "arm": name,
            "step": int(state.step),
            "train_loss": float(found.train_loss),
            "test_loss": float(found.test_loss),
            "test_accuracy": float(found.test_accuracy),
            "learning_rate": self._rate(int(state.step)),
            "batch_loss": None,
            "alignment_update": None,
            "alignment_gradient": None,
            "descent_ratio": None,
            "eigenvalues": None,
            "residuals": None,
            "kept": None,
            "sharpness": None,
            "sharpness_ratio": None,
            "matvecs": entry["matvecs"],
            "refreshes": int(space.refreshes),
            "failed_refreshes": entry["failed_refreshes"],
            "seconds": entry["seconds"],
            "seconds_curvature": entry["seconds_curvature"],
        }
        taken = 0 if trace is None else int(trace.num_steps)
        if taken:
            row["batch_loss"] = float(np.mean(trace.batch_losses[:taken]))
        if int(space.refreshes) > int(space.failed_refreshes):
            row["kept"] = int(found.kept)
            row["alignment_gradient"] = float(found.alignment_gradient)
            if solvers.finds_leading(self._config.subspace):
                values = np.asarray(space.subspace.eigenvalues)
                order = np.argsort(-values)
                row["eigenvalues"] = values[order]
                row["residuals"] = np.asarray(space.subspace.residuals)[order]
            if taken:
                row["alignment_update"] = float(np.mean(trace.alignments[:taken]))
                row["descent_ratio"] = float(np.mean(trace.descent_ratios[:taken]))
            every = self._config.measures.every
            if every and int(state.step) % every == 0:
                row |= self._measures(state)
        if self._is_sharpness_due(name, int(state.step)):
            sharpness = float(self._programs.sharpness(state, self.experiment.task))
            row["sharpness"] = sharpness
            row["sharpness_ratio"] = row["learning_rate"] * sharpness
        return row

    def _is_sharpness_due(self, name, step):
        every = self._config.measures.sharpness_every
        ends = name != PREFIX and step == self._config.num_steps
        return ends or bool(every and step % every == 0)

    def _rate(self, step: int) -> float:
        """η of the last step."""
        fields = self._config.optimizer
        return float(optimizers.rate_at(fields, fields.learning_rate, max(step - 1, 0)))

    def _measures(self, state: TrainState) -> dict:
        step = int(state.step)
        found, fidelity = self._programs.measure(
            state,
            self.experiment.task,
            self.experiment.feed(step),
            jax.random.fold_in(jax.random.key(self._config.seed), step),
        )
        row = {
            "eigenspace_overlap": float(found.eigenspace_overlap),
            "sum_rule_error": float(found.sum_rule_error),
            "batch_sharpness": float(found.batch_sharpness),
        }
        row |= {name: float(value) for name, value in fidelity.items()}
        for operator in CURVATURES:
            curvature = found.curvatures[operator]
            energies = curvature.energies
            values = energies._asdict() | {
                "trace_share": energies.trace_share,
                "frobenius_share": energies.frobenius_share,
                "block_share": energies.block_share,
                "form_dominant": curvature.form_dominant,
                "form_bulk": curvature.form_bulk,
            }
            row |= {f"{operator}/{k}": np.asarray(v) for k, v in values.items()}
        return row
