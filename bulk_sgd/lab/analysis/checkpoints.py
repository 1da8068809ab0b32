"""The checkpoints of a run as points of an analysis."""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bulk_sgd import checks
from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab import plugins
from bulk_sgd.lab.analysis.point import Point
from bulk_sgd.lab.files import identities, record
from bulk_sgd.lab.files.record import PREFIX
from bulk_sgd.lab.training.checkpoint import Checkpoints
from bulk_sgd.lab.training.experiment import Experiment
from bulk_sgd.linalg import basis

FORK = "fork"


class Saved(NamedTuple):
    """One checkpoint of a run."""

    path: str  # "prefix" or the name of an arm
    step: int  # since the start of the prefix
    position: int | None  # its key among the checkpoints; None for the fork

    @property
    def name(self) -> str:
        """The point's name: `sgd@2400`, or `fork@2000` where the arms start."""
        return f"{FORK if self.position is None else self.path}@{self.step}"


class RunPoints:
    """The points of a run, which may still be under way, read one at a time.

    It reads the prefix and the named arms (None: all), at steps that are a multiple of
    `every` and at the fork (0: all), and of these the checkpoints `names` (None: all).
    A ValueError says that the workdir has no run or no such checkpoint, or that the run
    is of other data or code. `objective` is the loss whose curvature the run took, or
    the loss of the full training set if the run took the batch's curvature. `notes` say
    how the analysis differs from what the run trained with.
    """

    def __init__(self, workdir, arms=None, every: int = 0, names=None):
        checks.integer("every", every, 0)
        self.record = record.read(workdir)
        if self.record is None:
            raise ValueError(
                f"workdir is {str(workdir)!r}; it must hold a run, with run.json."
            )
        for arm in arms or ():
            checks.one_of("arm", arm, self.record["arms"])
        plugins.restore(self.record.get("sources", {}))
        config = _config(self.record["config"])
        self._experiment = Experiment(config)
        prints = self._experiment.identity.fingerprints
        known = self.record.get("fingerprints")
        other, self._doubt = identities.other_fingerprints(known, prints)
        if other:
            raise ValueError(f"workdir {str(workdir)!r} holds a run of {other}.")
        self._workdir = workdir
        self._checkpoints = Checkpoints(workdir, read_only=True)
        task = self._experiment.task
        self.objective = task.curvature or task.train
        self.mode, self.notes = config.subspace.mode, self._notes()
        known = self._all(arms)
        if not known:
            raise ValueError(
                f"workdir {str(pathlib.Path(workdir))!r} holds no checkpoint to "
                "analyze; train with config.checkpoint.keep = 0, which keeps all."
            )
        for name in names or ():
            checks.one_of("checkpoint", name, [saved.name for saved in known])
        self.saved = [
            saved
            for saved in known
            if (not names or saved.name in names)
            and (not every or saved.step % every == 0 or saved.position is None)
        ]

    def _notes(self):
        used, known = self.objective.num_examples, self.record["num_train"]
        notes = {
            f"The loss is taken over {used:,} of the {known:,} training examples, the "
            "run's seeded subset.": used < known,
            "The run's subspace belongs to the preconditioned Hessian; everything here "
            "is measured on the Hessian itself.": (
                self._experiment.config.subspace.preconditioned
            ),
            f"The run was {self._doubt}.": self._doubt,
        }
        return [note for note, holds in notes.items() if holds]

    def __len__(self):
        return len(self.saved)

    def __iter__(self) -> Iterator[Point]:
        for saved in self.saved:
            state = self._load(saved)
            if state is not None:  # else loading it has said why
                update = self._update(state)
                yield Point(saved.name, state.params, saved.path, saved.step, update)

    def _all(self, arms):
        found = []
        for position, story in self._checkpoints.stories().items():
            path = story["name"]
            entry = record.entries(story["record"])[path]
            found.append(Saved(path, entry["last_step"], position))
        fork = (self.record["switch"] or {}).get("step")
        if fork is not None and record.has_fork(self._workdir):
            found.append(Saved(PREFIX, fork, None))
        order = [PREFIX, *self.record["arms"]]
        chosen = [saved for saved in found if saved.path in (PREFIX, *(arms or order))]
        return sorted(chosen, key=lambda saved: (order.index(saved.path), saved.step))

    def _load(self, saved):
        blank = self._experiment.start()
        if saved.position is None:
            return self._checkpoints.load_fork(blank)
        found = self._checkpoints.load(blank, saved.position)
        return found and found[0]

    def _update(self, state):
        """The inner optimizer's update on the next batch, before any projection."""
        before = state.params
        state, _ = self._experiment.programs.train(
            jax.tree.map(jnp.copy, state),  # the program takes its buffers
            self._experiment.task,
            self._experiment.feed(int(state.step)),
            1,
            # The alignment that ended the prefix would end this step too.
            self._experiment.scalars()._replace(threshold=jnp.inf),
            projected=False,
        )
        return basis.subtract(state.params, before)


def _config(plain: dict) -> ConfigDict:
    """The config that `identities.plain` made `plain` from, for the devices at hand."""

    def fill(config, plain):
        for name, value in plain.items():
            if isinstance(value, dict) and name in config:
                fill(config[name], value)
            else:
                config[name] = tuple(value) if isinstance(value, list) else value

    config = config_lib.default()
    with config.unlocked():
        fill(config, plain)
    config.sharding.data, config.sharding.fsdp = 0, 1
    config.check_memory = False
    config.wandb = config.mlflow = ""
    return config
