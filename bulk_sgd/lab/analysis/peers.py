"""Checkpoints of other programs as points of an analysis.

The parameters come from files. A config names the network, its loss and its data.
"""

import collections
import copy
import pathlib
from collections.abc import Iterator, Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from flax import traverse_util

from bulk_sgd.curvature import blocks
from bulk_sgd.lab import plugins
from bulk_sgd.lab.analysis.point import Point
from bulk_sgd.lab.training.experiment import Experiment

_SHOWN = 8  # names of arrays in an error


class PeerPoints:
    """Files of parameters as points, in order, read one at a time.

    `paths` are arguments of `read`. `convert` is the import path of a function. It
    takes what `read` returns, and returns the parameters of the network in
    `config.model`, as a tree or as arrays by path. `objective` is the loss on the data
    of the curvature or, if these are mini-batches, on the training set.

    Raises:
      ValueError: the config is wrong, a file cannot be read, or its arrays are not the
        parameters of the network.
    """

    def __init__(self, config, paths, convert: str = ""):
        config = copy.deepcopy(config)
        config.check_memory = False  # nothing is trained
        self._experiment = Experiment(config)
        self._paths, self._convert = list(map(pathlib.Path, paths)), convert
        task, known = self._experiment.task, self._experiment.identity
        self.objective = task.curvature or task.train
        self.mode, self.notes = config.subspace.mode, []
        used, all_ = self.objective.num_examples, task.num_train
        if used < all_:
            part = f"The loss is taken over {used:,} of the {all_:,} training examples"
            self.notes.append(f"{part}, a seeded subset.")
        # An analysis resumes only with the same data and code.
        fields = known.config | {"fingerprints": known.fingerprints}
        self.record = {"name": config.name, "config": fields}
        for path in self._paths:
            self._load(path)

    def __len__(self):
        return len(self._paths)

    def __iter__(self) -> Iterator[Point]:
        stems = [path.stem if path.is_file() else path.name for path in self._paths]
        counts = collections.Counter(stems)
        for path, stem in zip(self._paths, stems):
            name = stem if counts[stem] == 1 else "-".join(path.parts).strip("/-")
            yield Point(name, self._load(path))

    def _load(self, path):
        arrays = read(path)
        if self._convert:
            fn = plugins.load("--convert", self._convert)
            with plugins.telling("--convert", self._convert):
                arrays = _by_path(fn(arrays))
        network = self._experiment.config.model.name
        return fit(arrays, self._experiment.params, f"{path} and the network {network}")


def read(path) -> dict[str, np.ndarray]:
    """The arrays of a file by name, such as `dense_0/kernel`.

    Args:
      path: a `.safetensors` or `.npz` file, or a folder with a tree that orbax wrote.
        Dots in names become slashes. If names begin with `params/`, as in a
        `TrainState`, only those are kept. A last `value`, as in NNX, is dropped.

    Raises:
      ValueError: there is no such file, or the folder does not hold one tree.
    """
    path = pathlib.Path(path)
    kinds = {".safetensors": safetensors.numpy.load_file, ".npz": _read_npz}
    if path.is_dir():
        arrays = _read_orbax(path)
    elif path.is_file() and path.suffix in kinds:
        try:
            arrays = kinds[path.suffix](path)
        except Exception as error:  # each format has errors of its own
            raise ValueError(f"{path} cannot be read ({error}).") from error
    else:
        raise ValueError(
            f"--params is {str(path)!r}; it must be a .safetensors or .npz file, or a "
            "folder with a tree that orbax wrote."
        )
    arrays = {name.replace(".", "/"): array for name, array in arrays.items()}
    while any(name.startswith("params/") for name in arrays):
        parts = {name.partition("/"): array for name, array in arrays.items()}
        arrays = {rest: x for (top, _, rest), x in parts.items() if top == "params"}
    return {name.removesuffix("/value"): array for name, array in arrays.items()}


def fit(arrays: Mapping[str, np.ndarray], params, what: str) -> dict:
    """The arrays in the tree, dtype and layout of `params`, matched by path.

    Raises:
      ValueError: arrays are missing, unexpected or of another shape. The message names
        them; its subject is `what`.

    >>> fit({"a/b": np.ones(2)}, {"a": {"c": np.ones(2)}}, "a.npz and the network x")
    Traceback (most recent call last):
    ...
    ValueError: a.npz and the network x do not fit: missing a/c; unexpected a/b.
    """
    wanted = traverse_util.flatten_dict(params, sep="/")
    shapes = [
        f"{name} {np.shape(arrays[name])}, not {np.shape(leaf)}"
        for name, leaf in wanted.items()
        if name in arrays and np.shape(arrays[name]) != np.shape(leaf)
    ]
    problems = {
        "missing": [name for name in wanted if name not in arrays],
        "unexpected": [name for name in arrays if name not in wanted],
        "of another shape": shapes,
    }
    if any(problems.values()):
        told = [f"{kind} {_names(found)}" for kind, found in problems.items() if found]
        raise ValueError(f"{what} do not fit: {'; '.join(told)}.")
    cast = lambda name, leaf: np.asarray(arrays[name]).astype(leaf.dtype)
    placed = {
        name: jax.device_put(cast(name, leaf), getattr(leaf, "sharding", None))
        for name, leaf in wanted.items()
    }
    return traverse_util.unflatten_dict(placed, sep="/")


def _names(found):
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _read_npz(path):
    with np.load(path) as arrays:
        return dict(arrays)


def _read_orbax(path):
    found = [file.parent for file in path.rglob("_METADATA")]
    if len(found) != 1:
        trees = ", ".join(map(str, sorted(found)[:_SHOWN])) or "none"
        raise ValueError(
            f"--params is {str(path)!r}; it must hold one tree that orbax wrote, but "
            f"it holds {len(found)} ({trees})."
        )
    reader = ocp.PyTreeCheckpointer()
    metadata = reader.metadata(found[0].resolve()).item_metadata.tree
    # This machine may not have the devices that wrote it.
    host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
    return _by_path(reader.restore(found[0].resolve(), restore_args=host))


def _by_path(tree) -> dict[str, np.ndarray]:
    return dict(zip(blocks.paths(tree), map(np.asarray, jax.tree.leaves(tree))))
