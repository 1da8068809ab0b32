"""Data sets in .npz archives, mapped so that only the rows in use are read."""

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
    """Inputs of a part, 'train' or 'test', their labels, and the number of classes."""
    path = _MNIST if config.name == "mnist5k" else config.name
    if not pathlib.Path(path).exists():
        known = "mnist5k, sonnets, random, tfds:NAME, tsv:PATH, text:PATH, tokens:PATH"
        known += ", the import path of your own, module:name,"
        place = str(pathlib.Path(path).resolve())
        raise wrong(
            config,
            "name",
            f"must be {known} or an existing .npz; {place!r} does not exist",
        )
    if not zipfile.is_zipfile(path):
        raise wrong(config, "name", "it is not the archive that numpy.savez writes")
    return checked(config, part, *(_array(config, path, f"{x}_{part}") for x in "xy"))


def checked(config, part: str, pixels, labels) -> tuple[LazyRows, np.ndarray, int]:
    """What `read` returns, made from arrays; `pixels` may be `LazyRows`.

    Float labels need a loss of the user's own.
    """
    rows = LazyRows(pixels.shape, pixels.dtype, pixels.__getitem__)
    inputs = images.as_inputs(config, part, rows)
    problem = None
    whole = np.issubdtype(labels.dtype, np.integer)
    right = labels.shape[:1] == pixels.shape[:1] and (labels.ndim == 1 or not whole)
    if not right:
        problem = f"labels have shape {labels.shape} for {len(pixels)} inputs"
    elif labels.min() < 0 if whole else not np.issubdtype(labels.dtype, np.floating):
        problem = f"labels ({labels.dtype}) are not all non-negative integers or floats"
        if whole:
            problem += f": label {labels.argmin()} is {labels.min()}"
    if problem:
        raise wrong(config, "name", f"its {part} {problem}")
    if not whole:
        width = labels.shape[1] if labels.ndim > 1 else 1
        return inputs, labels[: len(inputs)].astype(np.float32), width
    return inputs, labels[: len(inputs)].astype(np.int32), int(labels.max()) + 1


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
    """The array in place, or None if it is compressed or cannot be mapped."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        if jax.process_index() == 0:  # the checksum needs all of it once
            with archive.open(info) as content:
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
