"""The last parameters of a prefix or an arm: `parameters/NAME.npz` of the workdir."""

import pathlib

import jax
import numpy as np

from bulk_sgd.lab.files import atomic, record


def write(workdir, name: str, params: dict):
    """Writes nested dicts of host arrays, with paths such as `dense_0/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    path = lambda keys: jax.tree_util.keystr(keys, simple=True, separator="/")
    arrays = {path(keys): leaf for keys, leaf in leaves}
    folder = record.make_folder(pathlib.Path(workdir) / "parameters")
    atomic.write(folder / f"{name}.npz", lambda file: np.savez(file, **arrays))


def read(workdir, name: str) -> dict:
    """The nested dicts; raises FileNotFoundError where they were not kept."""
    path = pathlib.Path(workdir) / "parameters" / f"{name}.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"No {path}: the stretch has not ended, or config.checkpoint.ends was too "
            "small to keep its parameters."
        )
    nested = {}
    with np.load(path) as arrays:
        for place, array in arrays.items():
            *groups, last = place.split("/")
            group = nested
            for key in groups:
                group = group.setdefault(key, {})
            group[last] = array
    return nested
