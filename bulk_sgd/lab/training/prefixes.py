"""Trained prefixes on disk, so that runs which share one train it once."""

import hashlib
import json
import pathlib

import jax
import numpy as np

from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.files import atomic, record
from bulk_sgd.lab.training.experiment import Experiment
from bulk_sgd.lab.training.state import TrainState


class PrefixStore:
    """A folder of prefixes by what they depend on, one `.npz` file each.

    Files appear whole or not at all, so several jobs may share the folder.
    """

    def __init__(self, folder):
        self._folder = pathlib.Path(folder)
        distributed.on_first(lambda: str(record.make_folder(folder, "prefixes")))

    def save(self, experiment: Experiment, state: TrainState, rows, entry: dict):
        """Keeps the state after the prefix, its rows of metrics and its entry."""
        leaves = jax.tree.leaves(_lasting(experiment, state))
        leaves = [distributed.whole(leaf) for leaf in leaves]
        if not distributed.is_first():
            return
        story = json.dumps({"rows": rows, "entry": entry})
        atomic.write(
            self._path(experiment), lambda file: np.savez(file, *leaves, story=story)
        )

    def load(self, experiment: Experiment, blank: TrainState):
        """The state, rows and entry of a prefix, None if it was not trained.

        `blank` is its initial state.
        """
        path = self._path(experiment)
        story = distributed.on_first(lambda: _story(path))
        if story is None:
            return None
        like, treedef = jax.tree.flatten(_lasting(experiment, blank))
        leaves = distributed.arrays_from_first(lambda: _arrays(path), like)
        lasting = treedef.unflatten(leaves)
        projection = lasting.projection or blank.projection
        return lasting._replace(projection=projection), story["rows"], story["entry"]

    def _path(self, experiment):
        name = hashlib.sha256(experiment.prefix.encode()).hexdigest()[:16]
        return self._folder / f"{name}.npz"


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
    return state if experiment.ends_by_alignment else state._replace(projection=None)
