"""One run in its workdir: its record, its rows of metrics and its checkpoints."""

import contextlib
import sys
from typing import NamedTuple

import jax

from bulk_sgd.lab import plugins
from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.files import identities, metrics, parameters, record
from bulk_sgd.lab.files.metrics import MetricWriter
from bulk_sgd.lab.files.record import PREFIX
from bulk_sgd.lab.from_config import arms as arms_lib
from bulk_sgd.lab.from_config import losses, optimizers
from bulk_sgd.lab.training import memory_forecast
from bulk_sgd.lab.training.checkpoint import Checkpoints
from bulk_sgd.lab.training.experiment import Experiment
from bulk_sgd.lab.training.state import TrainState
from bulk_sgd.linalg import basis


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

    fork: TrainState | None  # None before it
    states: dict[str, TrainState]  # of stretches under way, by name
    record: dict  # as it was then


class Run(contextlib.AbstractContextManager):
    """One execution of an experiment in a workdir, as a context manager.

    It alone writes the record and the files. On the way out it closes them and its
    experiment, and records how it ended. `record.claim` has left the workdir to it:
    where there are checkpoints it goes on from them, else it moves what is there to
    `attempts/`.
    """

    def __init__(self, experiment: Experiment, workdir, plain_step_seconds: float):
        self.experiment = experiment
        self.workdir = workdir
        config, identity = experiment.config, experiment.identity
        self._every = config.checkpoint.every
        self._keeps_ends = keeps_ends(experiment)
        self._checkpoints = Checkpoints(workdir, config.checkpoint.keep, identity)
        self.resumed = self._resume()
        self.rows = {}
        if self.resumed:
            self.record = self.resumed.record
        else:
            distributed.on_first(lambda: record.archive(workdir))
            self.record = _fresh_record(experiment)
        self.record["fingerprints"] = identity.fingerprints
        self.record["plain_step_seconds"] = plain_step_seconds
        self._save()  # before rows go, so that no record says complete without them
        if self.resumed:
            self._take_rows()
        self._writer = MetricWriter(workdir, self.record["config"])
        distributed.runs.add(workdir)

    def __exit__(self, kind, error, trace):
        if kind is not None:
            distributed.settle(kind)
            interrupted = issubclass(kind, (KeyboardInterrupt, SystemExit))
            self.end(record.INTERRUPTED if interrupted else record.FAILED)
        distributed.runs.discard(self.workdir)
        ends = record.entries(self.record).items()
        self._writer.close({name: entry["status"] for name, entry in ends})
        self._checkpoints.close()
        self.experiment.close()

    def entry(self, name: str) -> Entry:
        """How far a stretch has come."""
        known = self._entry(name)
        return Entry(**{field: known[field] for field in Entry._fields})

    @property
    def steps_before(self) -> int:
        """Steps that this run took before it was resumed."""
        if not self.resumed:
            return 0
        fork = self.record["prefix"]["last_step"]
        arms = self.record["arms"].values()
        return fork + sum(arm.get("last_step", fork) - fork for arm in arms)

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
            self._checkpoints.save(count, state, {"name": name, "record": self.record})

    def checkpoint_end(self, name: str, state: TrainState):
        """Saves an arm before its last dispatch, if the config asks for it.

        From there it can grow: only that dispatch and its row know the last step.
        """
        if name != PREFIX and self._keeps_ends:
            step = int(state.step)
            self._checkpoints.save_end(
                name, step, state, {"name": name, "record": self.record}
            )

    def keep_parameters(self, name: str, state: TrainState):
        """Writes the last parameters of a stretch, where an arm's end is kept."""
        if self._keeps_ends:
            params = jax.tree.map(distributed.whole, state.params)
            distributed.on_first(lambda: parameters.write(self.workdir, name, params))

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
        return record.entries(self.record)[name]

    def _save(self):
        record.write(self.workdir, self.record)

    def _take_rows(self):
        """Keeps the rows of metrics that the record knows of."""
        last = {
            name: x.get("last_step", -1)
            for name, x in record.entries(self.record).items()
        }
        for row in distributed.on_first(lambda: metrics.cut(self.workdir, last)):
            self.rows.setdefault(row["arm"], []).append(row)

    def _resume(self) -> Resumed | None:
        """What the workdir holds of this run: fork, states, and a record of both."""
        blank, checkpoints = self.experiment.start(), self._checkpoints
        known = distributed.on_first(lambda: record.begun(self.workdir))
        if known is None and (found := checkpoints.load(blank)):
            known = found[1]["record"]
        if known is None:
            return None
        ended = known["prefix"]["status"] == record.COMPLETE
        fork = checkpoints.load_fork(blank) if ended else None
        renewed = _RENEWED if fork else (*_RENEWED, "prefix", "switch")
        taken = _fresh_record(self.experiment)
        command = taken["command"]
        taken |= {name: known[name] for name in known.keys() - {*renewed}}
        grows = identities.changes(known["config"], taken["config"])
        if grows and command not in taken["command"].splitlines():
            taken["command"] += f"\n{command}"  # both together make this run
        entries, states = record.entries(taken), {}
        for name in taken["arms"] if fork else (PREFIX,):
            before = record.entries(known).get(name)
            if fork and before and _is_final(before, known, taken):
                entries[name].update(before)
            elif found := checkpoints.load_newest(blank, name):
                states[name], story = found
                entries[name].update(record.entries(story["record"])[name])
            # They start from the fork, so that no later step changes them.
            rates = {"stable_rate", "unstable_rate"} & (before or {}).keys()
            entries[name].update({rate: before[rate] for rate in rates})
        if fork is None and not states:
            return None
        if distributed.is_first():
            places = [f"{name}, step {int(x.step)}" for name, x in states.items()]
            where = "; ".join(places) or f"the fork, step {int(fork.step)}"
            print(f"{self.workdir}: going on from {where}.", file=sys.stderr)
        return Resumed(fork, states, taken)


def keeps_ends(experiment: Experiment) -> bool:
    """Whether a run keeps a state of each arm, from which it can grow."""
    fields = experiment.config.checkpoint
    size = len(experiment.arms) * memory_forecast.num_bytes(experiment.state)
    return bool(fields.every) and size <= 1e9 * fields.ends


# What a record says of the run that goes on, and not of the one before.
_RENEWED = ("status", "name", "config", "doubts", "ended", "seconds", "arms")


def _is_final(entry: dict, known: dict, now: dict) -> bool:
    """Whether an arm has ended, and not merely at the last step of a shorter run."""
    steps, more = (x["config"]["num_steps"] for x in (known, now))
    return entry["status"] in record.ENDED and not entry["last_step"] == steps < more


def _fresh_record(experiment: Experiment) -> dict:
    config = experiment.config
    return {
        "status": record.RUNNING,
        "name": config.name,
        "config": identities.plain(config),
        "doubts": experiment.doubts,
        "sources": plugins.sources(config),
        **record.provenance(),
        "ended": None,
        "seconds": None,
        "num_params": basis.size(experiment.params),
        "num_train": len(experiment.dataset.train_targets),
        "learning_rate": config.optimizer.learning_rate,
        "stability_threshold": optimizers.stability_threshold(
            config.optimizer, config.subspace.preconditioned
        ),
        "batch_stability_threshold": optimizers.batch_stability_threshold(
            config.optimizer
        ),
        "rank": config.subspace.rank,
        "loss_label": losses.label(config.loss),
        "switch": None,
        "prefix": {"status": record.PENDING, "last_step": 0},
        "arms": arms_lib.pending(config.arms),
    }
