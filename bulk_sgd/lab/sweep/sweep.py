"""Runs the cells of a sweep, each a run of its
own in `cells/NNN` of the workdir. Cells that are complete or diverged are skipped, so
the same command goes on with the cell that was interrupted; one that fails is recorded,
and the others go on. Cells that differ only in numbers (learning rate, arms, seed,
refresh interval) share their compiled programs, and runs with the same prefix train it
once.
"""

import json
import pathlib
import sys
import time
import traceback
import uuid

import jax
from ml_collections import ConfigDict

from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.files import record
from bulk_sgd.lab.sweep import grid
from bulk_sgd.lab.training.experiment import Experiment, program_of
from bulk_sgd.lab.training.prefixes import PrefixStore
from bulk_sgd.lab.training.train import train_together

FILE = "sweep.json"


def cell_folder(workdir, index: int) -> pathlib.Path:
    """The workdir of a cell's run."""
    return pathlib.Path(workdir) / "cells" / f"{index:03d}"


def run_sweep(
    base,
    cells: list[grid.Cell],
    workdir,
    *,
    only: int | None = None,
    lanes: int = 1,
    prefixes=None,
    about: str = "",
    say=None,
) -> list[str]:
    """Runs the cells that have not ended yet.

    Args:
      base: config that the cells override.
      cells: from `bulk_sgd.lab.sweep.grid`, all checked before the first one starts.
      workdir: folder of the sweep.
      only: index of the one cell to run; by default all are.
      lanes: runs trained in lockstep under `vmap`, and cells that end together. On
        accelerators small networks gain; with 1 every cell gives what it gives alone,
        bit for bit, and one is complete before the next begins.
      prefixes: folder of trained prefixes, which sweeps may share; by default
        `prefixes` in the workdir.
      about: what the sweep asks, for its report.
      say: takes lines of progress, by default to stderr.

    Returns:
      The status of each cell, as in its `run.json`; "pending" where it has none.

    Raises:
      ValueError: before anything starts, if a cell is wrong or does not fit the data,
        two are equal, `only` is out of range, or the workdir is no folder or holds
        another sweep or one of another base.
    """
    workdir, say = pathlib.Path(workdir), say or _say
    cells = grid.check(cells)
    configs = configs_of(base, cells)
    if only is not None and not 0 <= only < len(cells):
        raise ValueError(f"cell is {only}; it must be from 0 to {len(cells) - 1}.")
    if lanes < 1:
        raise ValueError(f"lanes is {lanes}; it must be at least 1.")
    for config in configs:
        distributed.check_agreement(record.plain(config))
    chosen = list(range(len(cells))) if only is None else [only]
    statuses = _statuses(workdir, chosen)
    open_ = [i for i, s in zip(chosen, statuses) if s not in record.ENDED]
    like = _check_data(configs, open_)
    distributed.on_first(lambda: _claim(workdir, record.plain(base), cells, about))
    todo = []
    for index in chosen:
        folder = cell_folder(workdir, index)
        if distributed.claim(folder, record.plain(configs[index])) is None:
            todo.append(index)
    if len(todo) < len(chosen):
        say(f"{len(chosen) - len(todo)} of {len(chosen)} cells had ended before.")
    store = PrefixStore(prefixes or workdir / "prefixes")
    sweep = _Sweep(cells, configs, workdir, lanes, store, say, len(todo), like)
    sweep.run(todo)
    return _statuses(workdir, range(len(cells)))


def _say(message):
    if distributed.is_first():
        print(message, file=sys.stderr, flush=True)


def configs_of(base, cells):
    if not isinstance(base, ConfigDict):
        config_lib.validate(base)  # which says so
    configs = []
    for index, cell in enumerate(cells):
        try:
            configs.append(grid.apply(base, cell))
        except ValueError as error:
            raise ValueError(f"cell {index}: {error}") from error
    if not configs:
        raise ValueError("The sweep has no cells.")
    plain = [json.dumps(record.plain(config)) for config in configs]
    for index, text in enumerate(plain):
        if text in plain[:index]:
            raise ValueError(
                f"cells {plain.index(text)} and {index} have the same config."
            )
    return configs


def _check_data(configs, indices):
    """Builds, of each program, the first experiment: the data fit all or none.

    Returns:
      The last one, with data for others to use again, or None.
    """
    like = None
    for group in _groups(configs, indices):
        try:
            like = Experiment(configs[group[0]], like)
        except ValueError as error:
            raise ValueError(f"cell {group[0]}: {error}") from error
    return like


def _claim(workdir, base, cells, about):
    record.make_folder(workdir)
    path = workdir / FILE
    content = {
        "name": base["name"],
        "about": about,
        "config": base,
        "cells": json.loads(json.dumps(cells)),
    }
    if path.exists():
        earlier = json.loads(path.read_text())
        changed = _change(earlier, content)
        if changed is None:
            return
        if not _came_to_nothing(workdir, len(earlier["cells"])):
            raise ValueError(
                f"workdir {str(workdir)!r} holds {changed}; choose another workdir."
            )
    # The jobs of an array start at the same time.
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    partial.replace(path)


def _change(earlier, content) -> str | None:
    """How the sweep of a workdir differs from the one that is to run."""
    if earlier["cells"] != content["cells"]:
        return "another sweep"
    # It was not always kept.
    bases = [sweep["config"] for sweep in (earlier, content) if "config" in sweep]
    changed = record.changes(*bases) if len(bases) == 2 else []
    if not changed:
        return None
    before, now = (_value(base, changed[0]) for base in bases)
    return f"this sweep with {changed[0]} = {before}, which is now {now}"


def _value(base, path):
    for name in path.split(".")[1:]:
        base = base.get(name, "absent")
    return repr(base)


def _came_to_nothing(workdir, count) -> bool:
    """Whether cells have failed, all that began, and before their first row."""
    begun = [
        folder
        for folder in (cell_folder(workdir, index) for index in range(count))
        if record.read(folder) is not None
    ]
    return bool(begun) and all(map(record.failed_at_once, begun))


def _groups(configs, indices) -> list[list[int]]:
    """The cells by the programs that they share."""
    groups: dict[str, list[int]] = {}
    for index in indices:
        groups.setdefault(program_of(configs[index]), []).append(index)
    return list(groups.values())


def _statuses(workdir, indices) -> list[str]:
    """How the runs of cells stand, as process 0 sees it."""
    read = lambda index: record.read(cell_folder(workdir, index))
    status = lambda found: found["status"] if found else record.PENDING
    return distributed.on_first(lambda: [status(read(index)) for index in indices])


class _Sweep:
    """Runs cells, as many together as there are lanes, and tells how each ended."""

    def __init__(self, cells, configs, workdir, lanes, store, say, left, like):
        self._cells, self._configs, self._workdir = cells, configs, workdir
        self._lanes, self._store, self._say = lanes, store, say
        self._left, self._start, self._done = left, time.perf_counter(), 0
        self._like = like  # the experiment whose data the next one uses again

    def run(self, todo):
        groups = _groups(self._configs, todo)
        if todo:
            self._say(f"cells to run: {len(todo)}; programs: {len(groups)}.")
        for group in groups:
            for first in range(0, len(group), self._lanes):
                self._run_together(group[first : first + self._lanes])

    def _run_together(self, batch):
        """Trains cells in lockstep; where that fails, each of them by itself."""
        start = time.perf_counter()
        folders = [cell_folder(self._workdir, index) for index in batch]
        try:
            experiments = []
            for index in batch:
                self._like = Experiment(self._configs[index], self._like)
                experiments.append(self._like)
            train_together(
                experiments,
                folders,
                lanes=self._lanes,
                prefixes=self._store,
            )
        except Exception as error:
            if jax.process_count() > 1:
                raise  # the others may not have failed: the job ends, and goes on later
            if len(batch) == 1:
                self._record_failure(batch[0])
                self._tell(batch[0], start, f"; {error}")
                return
            for index, status in zip(batch, _statuses(self._workdir, batch)):
                if status in record.ENDED:
                    self._tell(index, start)
                else:
                    self._run_together([index])
            return
        for index in batch:
            self._tell(index, start)

    def _record_failure(self, index):
        folder = cell_folder(self._workdir, index)
        (folder / "error.txt").write_text(traceback.format_exc())
        found = record.read(folder) or {"config": record.plain(self._configs[index])}
        record.write(folder, found | {"status": record.FAILED})

    def _tell(self, index, start, reason=""):
        now = time.perf_counter()
        self._left, self._done = self._left - 1, self._done + 1
        (status,) = _statuses(self._workdir, [index])
        line = f"cell {index} of {len(self._cells)} {status} ({_duration(now - start)})"
        fields = (f"{field}={value}" for field, value in self._cells[index].items())
        line += f": {', '.join(fields)}{reason}"
        if self._left:
            left = (now - self._start) / self._done * self._left
            line += f"; {self._left} left, about {_duration(left)}"
        self._say(line)


def _duration(seconds) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{0 if unit == 'min' else 1}f} {unit}"
    return f"{seconds:.0f} s"
