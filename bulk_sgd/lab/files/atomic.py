"""Files that appear whole or not at all."""

import os
import pathlib
import uuid
from collections.abc import Callable
from typing import BinaryIO


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8; a reader sees the old file or the new one."""
    write(path, lambda file: file.write(text.encode()))


def write(path: str | os.PathLike, fill: Callable[[BinaryIO], object]) -> None:
    """Writes what `fill` puts into an open binary file; nothing stays if it fails."""
    path = pathlib.Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            fill(file)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
