"""Runs the cells of a sweep: `python -m bulk_sgd.sweep --config=FILE --workdir=FOLDER`.

FILE has `get_config(preset)`, the base config, and `get_sweep(preset)`, a list of cells
made with `bulk_sgd.grid`; FILE:PRESET passes both a string. Each cell is a run of its
own in `cells/NNN` of the workdir. Cells that are complete or diverged are skipped, so
the same command goes on where it was interrupted; one that fails is recorded, and the
others go on. Cells that differ only in numbers (learning rate, arms, seed, refresh
interval) share their compiled programs, and runs with the same prefix train it once.
"""

import json
import pathlib
import runpy
import sys
import traceback
import uuid

import jax
from absl import app, flags
from ml_collections import config_flags

from bulk_sgd import cli, distributed, grid, record
from bulk_sgd.experiment import Experiment, program_of
from bulk_sgd.prefixes import PrefixStore
from bulk_sgd.train import train_together

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
      cells: from `bulk_sgd.grid`, all checked before the first one starts.
      workdir: folder of the sweep.
      only: index of the one cell to run; by default all are.
      lanes: runs trained in lockstep under `vmap`. On accelerators small networks
        gain; with 1 every cell gives what it gives alone, bit for bit.
      prefixes: folder of trained prefixes, which sweeps may share; by default
        `prefixes` in the workdir.
      about: what the sweep asks, for its report.
      say: takes lines of progress, by default to stderr.

    Returns:
      The status of each cell, as in its `run.json`; "pending" where it has none.

    Raises:
      ValueError: before anything starts, if a cell is wrong, two are equal, `only` is
        out of range, or the workdir holds another sweep.
    """
    workdir, say = pathlib.Path(workdir), say or _say
    configs = _configs(base, cells)
    if only is not None and not 0 <= only < len(cells):
        raise ValueError(f"cell is {only}; it must be from 0 to {len(cells) - 1}.")
    if lanes < 1:
        raise ValueError(f"lanes is {lanes}; it must be at least 1.")
    for config in configs:
        distributed.check_agreement(record.plain(config))
    distributed.on_first(lambda: _claim(workdir, configs[0].name, cells, about))
    chosen = range(len(cells)) if only is None else [only]
    todo = []
    for index in chosen:
        folder = cell_folder(workdir, index)
        if distributed.claim(folder, record.plain(configs[index])) is None:
            todo.append(index)
    if len(todo) < len(chosen):
        say(f"{len(chosen) - len(todo)} of {len(chosen)} cells had ended before.")
    store = PrefixStore(prefixes or workdir / "prefixes")
    for group in _groups(configs, todo):
        say(f"cells {', '.join(map(str, group))}: {_summary(cells, group)}")
        _run_group(configs, group, workdir, lanes, store, say)
    return distributed.on_first(
        lambda: [_status(workdir, index) for index in range(len(cells))]
    )


def _say(message):
    if distributed.is_first():
        print(message, file=sys.stderr, flush=True)


def _configs(base, cells):
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


def _claim(workdir, name, cells, about):
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / FILE
    content = {"name": name, "about": about, "cells": json.loads(json.dumps(cells))}
    if path.exists():
        earlier = json.loads(path.read_text())
        if earlier["cells"] != content["cells"]:
            raise ValueError(
                f"workdir {str(workdir)!r} holds another sweep; choose another workdir."
            )
        return
    # The jobs of an array start at the same time.
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    partial.replace(path)


def _groups(configs, indices) -> list[list[int]]:
    """The cells by the programs that they share."""
    groups: dict[str, list[int]] = {}
    for index in indices:
        groups.setdefault(program_of(configs[index]), []).append(index)
    return list(groups.values())


def _summary(cells, group):
    return "; ".join(
        ", ".join(f"{field}={value}" for field, value in cells[index].items())
        for index in group[:3]
    ) + (" …" if len(group) > 3 else "")


def _run_group(configs, group, workdir, lanes, store, say):
    """Trains a group together; where that fails, each of its cells by itself."""
    try:
        experiments = []
        for index in group:
            like = experiments[0] if experiments else None
            experiments.append(Experiment(configs[index], like))
        folders = [cell_folder(workdir, index) for index in group]
        train_together(experiments, folders, lanes=lanes, prefixes=store)
    except Exception as error:
        if jax.process_count() > 1:
            raise  # the others may not have failed: the job ends, and goes on later
        if len(group) == 1:
            say(f"cell {group[0]} failed: {error}")
            folder = cell_folder(workdir, group[0])
            (folder / "error.txt").write_text(traceback.format_exc())
            if record.read(folder) is None:
                plain = record.plain(configs[group[0]])
                record.write(folder, {"status": record.FAILED, "config": plain})
            return
        for index in group:
            if record.claim(cell_folder(workdir, index), record.plain(configs[index])):
                continue
            _run_group(configs, [index], workdir, lanes, store, say)


def _status(workdir, index):
    found = record.read(cell_folder(workdir, index))
    return found["status"] if found else record.PENDING


def _main(argv):
    if len(argv) > 1:
        cli.refuse(f"Unexpected arguments {argv[1:]}; fields are set as --config.x=…")
    cli.prepare()
    values = flags.FLAGS
    with (
        cli.refusing(),
        distributed.job("off" if values.list_cells else values.distributed),
        cli.refusing(),
        cli.reporting(values.workdir),
    ):
        _run(values)


def _run(values):
    filename = config_flags.get_config_filename(values["config"])
    path, _, preset = filename.partition(":")
    module = runpy.run_path(path)
    if "get_sweep" not in module:
        raise ValueError(f"{path} has no get_sweep; it is a config, not a sweep.")
    cells = module["get_sweep"](*filter(None, [preset]))
    if values.list_cells:
        for index, cell in enumerate(cells):
            print(index, json.dumps(cell))
        return
    if values.workdir is None:
        raise ValueError("--workdir is missing; it is the folder of the sweep.")
    statuses = run_sweep(
        values.config,
        cells,
        values.workdir,
        only=values.cell,
        lanes=values.lanes,
        prefixes=values.prefixes,
        about=(module.get("__doc__") or "").strip(),
    )
    counts = {status: statuses.count(status) for status in dict.fromkeys(statuses)}
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    if distributed.is_first():
        print(f"{len(statuses)} cells, {told}: {values.workdir}")
    if record.FAILED in statuses:
        sys.exit(1)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "FILE with get_config, get_sweep.")
    flags.DEFINE_string("workdir", None, "Folder of the sweep.")
    flags.DEFINE_bool("list_cells", False, "Print the cells and stop.")
    flags.DEFINE_integer("cell", None, "Run this cell alone, for job arrays.")
    flags.DEFINE_integer("lanes", 1, "Runs in lockstep under vmap (accelerators).")
    flags.DEFINE_string("prefixes", None, "Folder of trained prefixes to share.")
    cli.define_distributed()
    flags.mark_flag_as_required("config")
    app.run(_main, flags_parser=cli.parse)
