"""The files of one run: its record, and a row of metrics per dispatch."""

import contextlib

import jax
import numpy as np

from bulk_sgd import basis, losses, record
from bulk_sgd.curvature import CURVATURES
from bulk_sgd.experiment import Experiment
from bulk_sgd.metrics import MetricWriter
from bulk_sgd.steps import Programs, TrainState

PREFIX = "prefix"


class Run(contextlib.AbstractContextManager):
    """One execution of an experiment in a workdir, as a context manager.

    On the way out it closes its files and records how it ended.

    Args:
      experiment: what to run.
      programs: its compiled programs.
      workdir: an empty folder, see `record.claim`.

    Attributes:
      entries: the entries of the record, of the prefix and of each arm by name.
      record: what `run.json` holds.
      rows: the rows written so far, by arm.
    """

    def __init__(self, experiment: Experiment, programs: Programs, workdir):
        self.experiment = experiment
        self.workdir = workdir
        self._programs = programs
        self._config = experiment.config
        self.rows = {}
        self._writer = MetricWriter(workdir, self._config.tensorboard)
        self.record = {
            "status": record.RUNNING,
            "name": self._config.name,
            "config": record.plain(self._config),
            **record.provenance(),
            "ended": None,
            "seconds": None,
            "num_params": basis.size(experiment.params),
            "num_train": experiment.task.train.num_examples,
            "learning_rate": self._config.optimizer.learning_rate,
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
        self.entries = {PREFIX: self.record["prefix"], **self.record["arms"]}
        self.save()

    def __exit__(self, kind, error, trace):
        if kind is not None:
            interrupted = issubclass(kind, (KeyboardInterrupt, SystemExit))
            self.end(record.INTERRUPTED if interrupted else record.FAILED)
        self._writer.close()

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
            "batch_loss": None,
            "alignment_update": None,
            "alignment_gradient": None,
            "descent_ratio": None,
            "eigenvalues": None,
            "residuals": None,
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
            sharpness = float(space.subspace.eigenvalues[0])
            row["alignment_gradient"] = float(found.alignment_gradient)
            row["eigenvalues"] = np.asarray(space.subspace.eigenvalues)
            row["residuals"] = np.asarray(space.subspace.residuals)
            row["sharpness_ratio"] = self._config.optimizer.learning_rate * sharpness
            if taken:
                row["alignment_update"] = float(np.mean(trace.alignments[:taken]))
                row["descent_ratio"] = float(np.mean(trace.descent_ratios[:taken]))
            every = self._config.measures.every
            if every and int(state.step) % every == 0:
                row |= self._measures(state)
        return row

    def _measures(self, state: TrainState) -> dict:
        step = int(state.step)
        found = self._programs.measure(
            state,
            self.experiment.task,
            self.experiment.indices(step),
            jax.random.fold_in(jax.random.key(self._config.seed), step),
        )
        row = {
            "eigenspace_overlap": float(found.eigenspace_overlap),
            "sum_rule_error": float(found.sum_rule_error),
            "batch_sharpness": float(found.batch_sharpness),
        }
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
