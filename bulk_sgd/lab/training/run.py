"""One run in its workdir: its record, its rows of metrics and its checkpoints."""

import contextlib
import sys
from typing import NamedTuple

from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.files import metrics, record
from bulk_sgd.lab.files.metrics import MetricWriter
from bulk_sgd.lab.from_config import losses, optimizers
from bulk_sgd.lab.training.checkpoint import Checkpoints
from bulk_sgd.lab.training.experiment import Experiment
from bulk_sgd.lab.training.state import TrainState
from bulk_sgd.linalg import basis

PREFIX = "prefix"


class Entry(NamedTuple):
    """What the record says of the progress of a stretch, the prefix or an arm."""

    status: str  # as in `files.record`
    last_step: int  # since the start of the prefix
    seconds: float = 0.0  # wall time of its steps and of waiting for data
    seconds_curvature: float = 0.0  # the part that plain steps would not have taken
    matvecs: int = 0  # curvature products
    failed_refreshes: int = 0  # solves that did not converge


class Resumed(NamedTuple):
    """What a run goes on from."""

    name: str  # of the stretch under way
    state: TrainState
    fork: TrainState | None  # None before it
    num_rows: int  # rows of metrics written by then
    record: dict  # as it was then


class Run(contextlib.AbstractContextManager):
    """One execution of an experiment in a workdir, as a context manager.

    It alone writes the record and the files. On the way out it closes them and its
    experiment, and records how it ended. `record.claim` has left the workdir to it:
    where there are checkpoints it goes on from the newest, else it moves what is there
    to `attempts/`.
    """

    def __init__(self, experiment: Experiment, workdir, plain_step_seconds: float):
        self.experiment = experiment
        self.workdir = workdir
        config, identity = experiment.config, experiment.identity
        self._every = config.checkpoint.every
        self._checkpoints = Checkpoints(workdir, config.checkpoint.keep, identity)
        self.resumed = self._resume()
        self.rows = {}
        if self.resumed:
            self.record = self.resumed.record
            cut = lambda: metrics.cut(workdir, self.resumed.num_rows)
            for row in distributed.on_first(cut):
                self.rows.setdefault(row["arm"], []).append(row)
        else:
            distributed.on_first(lambda: record.archive(workdir))
            self.record = _fresh_record(experiment)
        self.record["fingerprints"] = identity.fingerprints
        self.record["plain_step_seconds"] = plain_step_seconds
        self._writer = MetricWriter(workdir, config.tensorboard)
        self._save()
        distributed.runs.add(workdir)

    def __exit__(self, kind, error, trace):
        if kind is not None:
            distributed.settle(kind)
            interrupted = issubclass(kind, (KeyboardInterrupt, SystemExit))
            self.end(record.INTERRUPTED if interrupted else record.FAILED)
        distributed.runs.discard(self.workdir)
        self._writer.close()
        self._checkpoints.close()
        self.experiment.close()

    def entry(self, name: str) -> Entry:
        """How far a stretch has come."""
        known = self._entry(name)
        return Entry(**{field: known[field] for field in Entry._fields})

    def update(self, name: str, **facts):
        """Adds to the entry of a stretch, and saves its start and its end."""
        known = self._entry(name)
        changed = known["status"] != facts.get("status", known["status"])
        known.update(facts)
        if changed:
            self._save()

    def write(self, row: dict):
        """Appends a row of metrics."""
        self.rows.setdefault(row["arm"], []).append(self._writer.write(row))

    def adopt_prefix(self, rows: list[dict], entry: dict):
        """Takes over the prefix of another run that shares it."""
        if PREFIX not in self.rows:
            for row in rows:
                self.write(row)
        self.record["prefix"].update(entry)

    def fork(self, state: TrainState, switch: dict):
        """Records the switch, and saves the state that the arms start from."""
        self.record["switch"] = switch
        self._save()
        if self._every:
            self._checkpoints.save_fork(state)

    def checkpoint(self, name: str, state: TrainState):
        """Saves where a stretch stands, if the config asks for checkpoints."""
        if self._every:
            count = sum(map(len, self.rows.values()))
            story = {"name": name, "rows": count, "record": self.record}
            self._checkpoints.save(count, state, story)

    def is_checkpoint(self, before: int, step: int) -> bool:
        """Whether a checkpoint is due after the steps from `before` to `step`."""
        return bool(self._every) and step // self._every > before // self._every

    def end(self, status: str):
        """Records how the run ended, unless it already has."""
        if self.record["status"] != record.RUNNING:
            return
        record.end(self.record, status)
        self._save()

    def _entry(self, name) -> dict:
        return self.record["prefix"] if name == PREFIX else self.record["arms"][name]

    def _save(self):
        record.write(self.workdir, self.record)

    def _resume(self):
        if not self._every:
            return None
        blank = self.experiment.start()
        found = self._checkpoints.load(blank)
        if found is None:
            return None
        state, story = found
        name, fork = story["name"], None
        if name != PREFIX:
            fork = self._checkpoints.load_fork(blank)
            if fork is None:
                return None
        if distributed.is_first():
            where = f"{name}, step {int(state.step)}"
            print(f"{self.workdir}: going on from {where}.", file=sys.stderr)
        return Resumed(name, state, fork, story["rows"], story["record"])


def _fresh_record(experiment: Experiment) -> dict:
    config = experiment.config
    return {
        "status": record.RUNNING,
        "name": config.name,
        "config": record.plain(config),
        **record.provenance(),
        "ended": None,
        "seconds": None,
        "num_params": basis.size(experiment.params),
        "num_train": len(experiment.dataset.train_targets),
        "learning_rate": config.optimizer.learning_rate,
        "stability_threshold": optimizers.stability_threshold(
            config.optimizer, config.subspace.preconditioned
        ),
        "rank": config.subspace.rank,
        "loss_label": losses.label(config.loss),
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
