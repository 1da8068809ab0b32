"""Trained prefixes on disk, so that runs which share one train it once."""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np

from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.files import atomic, identities, record
from bulk_sgd.lab.from_config.arms import keeps_subspace
from bulk_sgd.lab.training.experiment import Experiment, prefix_of
from bulk_sgd.lab.training.state import TrainState

# The loss of a state may differ between the device that stored it and another, whose
# products may be in TF32, with 11 bits.
_ROUNDING = 1e-3


class PrefixStore:
    """A folder of prefixes by what they depend on, one `.npz` file each.

    Files appear whole or not at all, so several jobs may share the folder.
    """

    def __init__(self, folder):
        self._folder = pathlib.Path(folder)
        self._doubted = set()
        distributed.on_first(lambda: str(record.make_folder(folder, "prefixes")))

    def check(self, config, fingerprints: dict):
        """Raises ValueError if the prefix is there, but of other data or code.

        Prints a line if this is unknown.
        """
        path = self._path(config)
        distributed.on_first(lambda: self._check(path, _story(path), fingerprints))

    def save(self, experiment: Experiment, state: TrainState, rows, entry: dict):
        """Keeps the state after the prefix, its rows of metrics and its entry."""
        leaves = jax.tree.leaves(_lasting(experiment, state))
        leaves = [distributed.whole(leaf) for leaf in leaves]
        if not distributed.is_first():
            return
        fingerprints = experiment.identity.fingerprints
        story = {"rows": rows, "entry": entry, "fingerprints": fingerprints}
        story = json.dumps(story)
        atomic.write(
            self._path(experiment.config),
            lambda file: np.savez(file, *leaves, story=story),
        )

    def load(self, experiment: Experiment, blank: TrainState):
        """The state, rows and entry of a prefix, None if it was not trained.

        `blank` is its initial state. Raises ValueError if it is of other data or code.
        """
        self.check(experiment.config, experiment.identity.fingerprints)
        path = self._path(experiment.config)
        story = distributed.on_first(lambda: _story(path))
        if story is None:
            return None
        like, treedef = jax.tree.flatten(_lasting(experiment, blank))
        leaves = distributed.arrays_from_first(lambda: _arrays(path), like)
        lasting = treedef.unflatten(leaves)
        state = lasting._replace(projection=lasting.projection or blank.projection)
        if story["entry"]["status"] != record.DIVERGED:
            self._check_loss(path, experiment, state, story["rows"][-1]["train_loss"])
        return state, story["rows"], story["entry"]

    def _path(self, config):
        name = hashlib.sha256(prefix_of(config).encode()).hexdigest()[:16]
        return self._folder / f"{name}.npz"

    def _check(self, path, story, fingerprints):
        if story is None:
            return
        known = story.get("fingerprints")
        what, doubt = identities.other_fingerprints(known, fingerprints)
        if what:
            raise ValueError(_refusal(path, f"is of {what}"))
        if doubt and path not in self._doubted:
            self._doubted.add(path)
            print(f"The prefix {str(path)!r} was {doubt}.", file=sys.stderr)

    def _check_loss(self, path, experiment, state, then):
        """Refuses a state whose training loss differs from the prefix's last row."""
        now = float(experiment.programs.evaluate(state, experiment.task).train_loss)
        if not abs(now - then) <= _ROUNDING * abs(then):
            what = f"ends with a training loss of {then:.6g}, which is {now:.6g} here"
            raise ValueError(_refusal(path, f"{what}: its data or code are others"))


def _refusal(path, what):
    return f"the prefix {str(path)!r} {what}; choose another folder of prefixes."


def _story(path):
    if not path.exists():
        return None
    with np.load(path) as file:
        return json.loads(str(file["story"]))


def _arrays(path):
    with np.load(path) as file:
        return [file[f"arr_{i}"] for i in range(len(file.files) - 1)]


def _lasting(experiment, state):
    """What the prefix changes; plain training leaves the projection as it began."""
    kept = keeps_subspace(experiment.config, record.PREFIX)
    return state if kept else state._replace(projection=None)
