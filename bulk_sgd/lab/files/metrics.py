"""Rows of metrics as JSON lines, and for loggers."""

import json
import math
import os
import pathlib

import jax
import numpy as np

from bulk_sgd.lab.files import atomic, loggers

FILE = "metrics.jsonl"


def cut(workdir, last_steps: dict[str, int]) -> list[dict]:
    """Keeps the rows up to the last step of each arm named, and returns them."""
    path = pathlib.Path(workdir) / FILE
    lines = path.read_text().splitlines(keepends=True)
    # A killed run may leave a part of a line.
    rows = {line: json.loads(line) for line in lines if line.endswith("\n")}
    kept = {x: r for x, r in rows.items() if r["step"] <= last_steps.get(r["arm"], -1)}
    atomic.write_text(path, "".join(kept))
    return list(kept.values())


def read(workdir) -> tuple[dict[str, list[dict]], int]:
    """The rows of each arm by step, and how many lines are unreadable.

    If a resumed run wrote a step twice, the last row counts. A torn last line is
    ignored.
    """
    by_step: dict[str, dict[int, dict]] = {}
    text = (pathlib.Path(workdir) / FILE).read_text("utf-8", "replace")
    *lines, last = text.split("\n")
    lines = [line for line in lines if line.strip()]
    # A last line without a line end may be torn, which is not reported as damage.
    lines += [last] if json_object(last) else []
    unreadable = 0
    for row in map(json_object, lines):
        step = row and row.get("step")
        is_step = isinstance(step, int) and not isinstance(step, bool)
        if is_step and isinstance(row.get("arm"), str):
            by_step.setdefault(row["arm"], {})[step] = row
        else:
            unreadable += 1
    return {
        a: [r for _, r in sorted(s.items())] for a, s in by_step.items()
    }, unreadable


def json_object(text: str) -> dict | None:
    """The JSON object in a text, or None if the text is anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def count(workdir) -> int:
    """Number of rows in the file, 0 where there is none."""
    path = pathlib.Path(workdir) / FILE
    return path.read_bytes().count(b"\n") if path.is_file() else 0


class MetricWriter:
    """Writes rows to `metrics.jsonl`, and to the loggers that a plain config asks for.

    Each row is one line, flushed at once, so a killed run loses at most the last.
    Numbers that are not finite become null. Only process 0 writes.
    """

    def __init__(self, workdir, config: dict):
        writes = jax.process_index() == 0
        path = pathlib.Path(workdir, FILE) if writes else pathlib.Path(os.devnull)
        self._file = path.open("a")
        self._loggers = loggers.Loggers(config, workdir) if writes else None

    def write(self, row: dict) -> dict:
        """Appends a row and returns it as written.

        It is a dict with `arm`, `step`, and numbers or lists of numbers.
        """
        row = plain(row)
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        if self._loggers:
            self._loggers.write(row)
        return row

    def close(self, statuses: dict[str, str]):
        """Closes all files; `statuses` say how each arm has ended."""
        self._file.close()
        if self._loggers:
            self._loggers.close(statuses)


def plain(value):
    """Nested arrays as JSON holds them; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (str, bool)) or value is None:
        return value
    array = np.asarray(value)
    if array.ndim:
        return [plain(item) for item in array]
    number = array.item()
    return number if math.isfinite(number) else None
