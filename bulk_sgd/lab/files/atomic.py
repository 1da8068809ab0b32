"""Files that appear whole: a reader sees the old file or the new one, never a part."""

import os
import pathlib
import uuid
from collections.abc import Callable
from typing import BinaryIO


def write(path, fill: Callable[[BinaryIO], object]):
    """Replaces a file with what `fill` writes into an open binary file.

    Processes may write the same path at the same time; the last one to finish wins.
    Where `fill` raises, the old file stays.
    """
    path = pathlib.Path(path)
    # Jobs on other hosts may have the same process id.
    name = f"{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial"
    partial = path.with_name(name)
    try:
        with partial.open("wb") as file:
            fill(file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path, text: str):
    """Replaces a file with a text in UTF-8."""
    write(path, lambda file: file.write(text.encode("utf-8")))
