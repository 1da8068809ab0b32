"""Arrays of an .npz archive, without reading all of them."""

import pathlib
import struct
import zipfile
import zlib

import jax
import numpy as np

from bulk_sgd.lab.data.dataset import wrong

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_NAME_LENGTH = 26  # where the lengths of name and extra are in the header of a member


def open_arrays(config, path, names) -> list[np.ndarray]:
    """Arrays of an archive: mapped, so that only rows which are used are read.

    What `numpy.savez_compressed` writes has no rows to find and is read whole.

    Args:
      config: `config.data`, whose `name` is blamed.
      path: of the archive.
      names: of the arrays.

    Raises:
      ValueError: there is no such archive, it lacks an array, or one is damaged, which
        process 0 alone looks for, or not of numbers.

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
    """The array in place, None where it must be read to be had."""
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
