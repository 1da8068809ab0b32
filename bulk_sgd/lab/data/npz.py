"""Data sets in .npz archives, without reading all of them."""

import pathlib
import struct
import zipfile
import zlib

import jax
import numpy as np

from bulk_sgd.lab.data import images
from bulk_sgd.lab.data.dataset import wrong
from bulk_sgd.lab.data.rows import LazyRows

_MNIST = pathlib.Path(__file__).parent / "embedded" / "mnist_5k.npz"
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_NAME_LENGTH = 26  # offset of the lengths of name and extra in a member's header


def read(config, part: str) -> tuple[LazyRows, np.ndarray, int]:
    """Inputs of a part, their labels, and the number of classes.

    Args:
      config: `config.data` with `name`, 'mnist5k' or a path.
      part: 'train' or 'test'.

    Raises:
      ValueError: as `open_arrays`, or the arrays are not images or features and labels.
    """
    path = _MNIST if config.name == "mnist5k" else config.name
    pixels, labels = open_arrays(config, path, [f"{x}_{part}" for x in "xy"])
    rows = LazyRows(pixels.shape, pixels.dtype, pixels.__getitem__)
    inputs = images.as_inputs(config, part, rows)
    problem = None
    if labels.shape != pixels.shape[:1]:
        problem = f"labels have shape {labels.shape} for {len(pixels)} images"
    elif not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        problem = f"labels ({labels.dtype}) are not all non-negative integers"
    if problem:
        raise wrong(config, "name", f"its {part} {problem}")
    return inputs, labels[: len(inputs)].astype(np.int32), int(labels.max()) + 1


def open_arrays(config, path, names) -> list[np.ndarray]:
    """Arrays of an archive, mapped so that only the rows in use are read.

    Compressed archives cannot be mapped and are read whole.

    Args:
      config: `config.data`, whose `name` errors blame.
      path: of the archive.
      names: of the arrays.

    Raises:
      ValueError: there is no such archive, it lacks an array, or an array does not hold
        numbers or is damaged. Process 0 alone checks for damage.

    >>> import numpy as np
    >>> from ml_collections import ConfigDict
    >>> np.savez("a.npz", x=np.arange(3), y=np.ones(2))
    >>> open_arrays(ConfigDict({"name": "a.npz"}), "a.npz", ["x"])
    [memmap([0, 1, 2])]
    """
    if not pathlib.Path(path).exists():
        known = "mnist5k, sonnets, random, tfds:NAME, tsv:PATH, text:PATH, tokens:PATH"
        raise wrong(config, "name", f"must be {known} or an existing .npz")
    if not zipfile.is_zipfile(path):
        raise wrong(config, "name", "it is not the archive that numpy.savez writes")
    return [_array(config, path, name) for name in names]


def _array(config, path, name: str) -> np.ndarray:
    with np.load(path) as arrays:
        if name not in arrays:
            raise wrong(config, "name", f"it lacks the array {name}")
        try:
            mapped = _mapped(path, f"{name}.npy")
            return arrays[name] if mapped is None else mapped
        except ValueError as error:  # only pickle, which may run code, could load it
            problem = f"its {name} holds Python objects rather than numbers"
            raise wrong(config, "name", problem) from error
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise wrong(config, "name", f"its {name} is damaged: {error}") from error


def _mapped(path, member: str) -> np.ndarray | None:
    """The array in place, or None if it cannot be mapped."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        if jax.process_index() == 0:
            with archive.open(info) as content:  # compares the checksum at the end
                while content.read(1 << 20):
                    pass
    with pathlib.Path(path).open("rb") as file:
        file.seek(info.header_offset + _NAME_LENGTH)
        lengths = struct.unpack("<HH", file.read(4))
        file.seek(sum(lengths), 1)
        read_header = _HEADERS.get(np.lib.format.read_magic(file))
        if read_header is None:
            return None
        shape, is_fortran, dtype = read_header(file)
        if dtype.hasobject or 0 in shape or not shape:
            return None
        order = "F" if is_fortran else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)
