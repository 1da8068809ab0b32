"""Rows of metrics on their way out: JSON lines, TensorBoard and a progress bar."""

import json
import math
import os
import pathlib
import sys

import jax
import numpy as np
import tensorboardX
import tqdm

FILE = "metrics.jsonl"


def cut(workdir, count: int) -> list[dict]:
    """Takes all rows after the first `count` out of the file, and returns the others.

    A reader sees the old file or the new one.
    """
    path = pathlib.Path(workdir) / FILE
    lines = path.read_text().splitlines(keepends=True)[:count]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(lines))
    partial.replace(path)
    return [json.loads(line) for line in lines]


def count(workdir) -> int:
    """Number of rows in the file, 0 where there is none."""
    path = pathlib.Path(workdir) / FILE
    return path.read_bytes().count(b"\n") if path.is_file() else 0


class MetricWriter:
    """Writes rows to `metrics.jsonl` and, one run per arm, to `tensorboard/`.

    Each row is one line, written and flushed at once, so that a killed run keeps all
    but the last. Numbers that are not finite become null. Of several processes process
    0 alone writes.

    Args:
      workdir: folder of the run.
      tensorboard: whether to write TensorBoard files too.
    """

    def __init__(self, workdir, tensorboard: bool = True):
        self._workdir = pathlib.Path(workdir)
        writes = jax.process_index() == 0
        path = self._workdir / FILE if writes else pathlib.Path(os.devnull)
        self._file = path.open("a")
        self._tensorboard = tensorboard and writes
        self._boards = {}

    def write(self, row: dict) -> dict:
        """Appends a row, a dict with `arm`, `step`, and numbers or lists of them.

        Returns:
          The row as written.
        """
        row = plain(row)
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        if self._tensorboard:
            self._write_board(row)
        return row

    def close(self):
        """Closes all files."""
        self._file.close()
        for board in self._boards.values():
            board.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def _write_board(self, row):
        arm = row["arm"]
        if arm not in self._boards:
            folder = self._workdir / "tensorboard" / arm
            self._boards[arm] = tensorboardX.SummaryWriter(str(folder))
        board = self._boards[arm]
        for name, value in row.items():
            values = value if isinstance(value, list) else [value]
            for index, number in enumerate(values):
                if isinstance(number, (int, float)) and name != "step":
                    tag = f"{name}/{index + 1}" if isinstance(value, list) else name
                    board.add_scalar(tag, number, row["step"])
        board.flush()


class Progress:
    """A progress bar over all steps of an experiment, with the time left.

    Where stderr is no terminal it prints a line every 30 seconds.

    Args:
      total: number of steps; None if it is not known yet.
      enabled: False shows nothing.
      unit: what is counted.
    """

    def __init__(self, total: int | None, enabled: bool = True, unit: str = "step"):
        self._bar = tqdm.tqdm(
            total=total,
            unit=unit,
            disable=not enabled or jax.process_index() != 0,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def expect(self, total: int | None):
        """Sets the number of steps, as soon as it is known."""
        self._bar.total = total

    def advance(self, steps: int, **facts):
        """Counts steps and shows facts such as the arm and its loss."""
        self._bar.update(steps)
        self._bar.set_postfix(facts, refresh=False)

    def say(self, message: str):
        """Prints a line above the bar."""
        if not self._bar.disable:
            self._bar.write(message, file=sys.stderr)

    def close(self):
        """Leaves the bar as it stands."""
        self._bar.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def plain(value):
    """A nest of arrays as JSON holds it, with null for what is not finite."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (str, bool)) or value is None:
        return value
    array = np.asarray(value)
    if array.ndim:
        return [plain(item) for item in array]
    number = array.item()
    return number if math.isfinite(number) else None
