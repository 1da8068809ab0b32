"""Data from a function of the user: arrays, or sources of single examples."""

import numpy as np

from bulk_sgd.lab import plugins
from bulk_sgd.lab.data import npz
from bulk_sgd.lab.data.dataset import Dataset
from bulk_sgd.lab.data.rows import LazyRows

_FIELD = "config.data.name"


def call(config):
    """A `Dataset`, or a function that reads a part as `npz.read` does.

    The function of the user returns a `Dataset`, a dict of the arrays of an `.npz`, or
    a dict of "train" and "test", each a sequence of pairs (input, target), such as a
    grain source.
    """
    found = plugins.call(_FIELD, config.name, config.options)
    if isinstance(found, Dataset):
        return found._replace(name=config.name)

    def read(config, part):
        with plugins.telling(_FIELD, config.name):
            inputs, targets = _part(found, part)
        return npz.checked(config, part, inputs, targets)

    return read


def _part(found, part: str) -> tuple[LazyRows, np.ndarray]:
    if f"x_{part}" in found:
        inputs, targets = (np.asarray(found[f"{x}_{part}"]) for x in "xy")
        return LazyRows(inputs.shape, inputs.dtype, inputs.__getitem__), targets
    source = found[part]
    first = np.asarray(source[0][0])
    rows = lambda numbers: np.stack([np.asarray(source[int(i)][0]) for i in numbers])
    targets = np.asarray([source[i][1] for i in range(len(source))])
    return LazyRows((len(source), *first.shape), first.dtype, rows), targets
