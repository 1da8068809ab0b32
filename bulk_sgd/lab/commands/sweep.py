"""Runs the cells of a sweep: `python -m bulk_sgd.sweep --config=FILE --workdir=FOLDER`.

FILE has `get_config(preset)`, the base config, and `get_sweep(preset)`, a list of cells
made with `bulk_sgd.lab.sweep.grid`; FILE:PRESET passes a string to both. FILE may also
have `tune`, the name of a field or a `bulk_sgd.lab.sweep.tuning.Tuning`.
"""

import json
import runpy
import sys
import traceback

from absl import flags
from ml_collections import config_flags

from bulk_sgd.lab.commands import cli
from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.files import identities, record
from bulk_sgd.lab.sweep import estimate, grid, sweep, tuning, workdir

flags.disclaim_key_flags()


def run():
    """Entry point of the command line."""
    config_flags.DEFINE_config_file("config", None, "FILE with get_config, get_sweep.")
    flags.DEFINE_string("workdir", None, "Folder of the sweep.")
    flags.DEFINE_bool("list_cells", False, "Print the cells and stop.")
    flags.DEFINE_bool("estimate", False, "Measure some steps, print the cost and stop.")
    flags.DEFINE_integer("cell", None, "Run this cell alone, for job arrays.")
    flags.DEFINE_integer("lanes", 1, "Runs in lockstep under vmap (accelerators).")
    flags.DEFINE_string("prefixes", None, "Folder of trained prefixes to share.")
    cli.define_distributed()
    cli.run(main, "config")


def main(argv):
    """Runs the sweep; wrong input ends it with one sentence and status 2."""
    del argv
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
    path, colon, preset = filename.partition(":")
    module = runpy.run_path(path)
    if "get_sweep" not in module:
        raise ValueError(f"{path} has no get_sweep; it is a config, not a sweep.")
    cells = _call(module["get_sweep"], [preset] if colon else [], path)
    _check_overrides(config_flags.get_override_values(values["config"]), cells)
    tune = module.get("tune")
    if values.list_cells:
        configs = sweep.configs_of(values.config, cells)  # raises if one is wrong
        tuning.check(tune, cells, configs)
        plain = identities.plain(values.config)
        for index, cell in enumerate(workdir.ordered(values.workdir, plain, cells)):
            print(index, json.dumps(cell))
        return
    if values.estimate:
        print(estimate.table(estimate.estimate(values.config, cells, values.workdir)))
        return
    if values.workdir is None:
        raise ValueError("--workdir is missing; it is the folder of the sweep.")
    statuses = sweep.run_sweep(
        values.config,
        cells,
        values.workdir,
        only=values.cell,
        lanes=values.lanes,
        prefixes=values.prefixes,
        about=(module.get("__doc__") or "").strip(),
        tune=tune,
    )
    counts = {status: statuses.count(status) for status in dict.fromkeys(statuses)}
    ends = ", ".join(f"{count} {status}" for status, count in counts.items())
    if distributed.is_first():
        print(f"{len(statuses)} cells, {ends}: {values.workdir}")
    chosen = statuses if values.cell is None else [statuses[values.cell]]
    if record.FAILED in chosen:
        sys.exit(1)


def _call(get_sweep, arguments, path) -> list[grid.Cell]:
    """The checked cells that a function of a config file returns."""
    try:
        return grid.check(get_sweep(*arguments))
    except ValueError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        where = f" (line {lines[-1]})" if lines else ""
        raise ValueError(
            f"get_sweep of {path} fails with {type(error).__name__}: {error}{where}."
        ) from error


def _check_overrides(overrides, cells):
    """Refuses fields set on the command line that cells set again."""
    for field in overrides:
        for index, cell in enumerate(cells):
            if field in cell:
                raise ValueError(
                    f"--config.{field} is set on the command line, but the cells set "
                    f"this field (cell {index}: {cell[field]!r}); leave it out, or "
                    "change get_sweep."
                )
