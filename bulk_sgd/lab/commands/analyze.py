"""Analyzes the checkpoints of a run: `python -m bulk_sgd.analyze --workdir=RUN`.

Writes `analysis/` into the workdir: a page, its figures, and all numbers as JSON. The
same command resumes an interrupted analysis. With `--config` and `--params` in place of
`--workdir`, it analyzes parameters from files.
"""

import dataclasses
import pathlib

from absl import flags
from ml_collections import config_flags

from bulk_sgd.lab.analysis.analyze import analyze
from bulk_sgd.lab.analysis.checkpoints import RunPoints
from bulk_sgd.lab.analysis.peers import PeerPoints
from bulk_sgd.lab.analysis.point import Settings
from bulk_sgd.lab.analysis.report import write_report
from bulk_sgd.lab.commands import cli
from bulk_sgd.lab.files import record

flags.disclaim_key_flags()
_OF_RUNS = ("workdir", "arm", "every", "checkpoints")
_OF_PEERS = ("config", "params", "convert")


def main(argv):
    """Analyzes a run or files; wrong input ends it with one sentence and status 2."""
    del argv
    cli.prepare()
    values = flags.FLAGS
    names = {field.name for field in dataclasses.fields(Settings)} - {"mode"}
    given = {name: values[name].value for name in names}
    with cli.refusing(), cli.reporting(values.workdir or values.output):
        settings = Settings(**{k: v for k, v in given.items() if v is not None})
        points = _points(values)
        settings = dataclasses.replace(settings, mode=points.mode)
        folder = pathlib.Path(values.output or pathlib.Path(values.workdir, "analysis"))
        about = {"run": points.record, "notes": points.notes, **record.provenance()}
        options = {"progress": values.progress, "about": about}
        analyze(points, points.objective, folder, settings, **options)
        print(write_report(folder))


def _points(values):
    """The points of the run, or of the files, that the flags name."""
    value = lambda name: values[name].value
    runs, peers = (list(filter(value, names)) for names in (_OF_RUNS, _OF_PEERS))
    if runs and peers:
        raise ValueError(
            f"--{runs[0]} is for a run and --{peers[0]} for parameters from files; set "
            "the flags of one of them."
        )
    needed = ("config", "params", "output") if peers else ("workdir",)
    for name in needed:
        if not value(name):
            instead = "" if peers else ", or --config, --params and --output"
            raise ValueError(f"--{name} is missing{instead}.")
    if peers:
        return PeerPoints(*map(value, _OF_PEERS))
    return RunPoints(*map(value, _OF_RUNS))


def run():
    """Entry point of the command line."""
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("output", None, "Folder to write to; WORKDIR/analysis.")
    about = "In place of a workdir: FILE with get_config(), for data, model and loss."
    config_flags.DEFINE_config_file("config", None, about)
    about = "Parameters: .safetensors or .npz files, or folders that orbax wrote."
    flags.DEFINE_list("params", None, about)
    about = "Import path of a function that renames and transposes arrays of --params."
    flags.DEFINE_string("convert", "", about)
    flags.DEFINE_list("arm", None, "Arms beside the prefix, by default all.")
    flags.DEFINE_integer("every", 0, "Only steps that are a multiple of it; 0: all.")
    flags.DEFINE_list("checkpoints", None, "Only those named, such as sgd@2400.")
    flags.DEFINE_bool("progress", True, "Show the progress and the time left.")
    flags.DEFINE_integer("rank", None, "Number of eigenpairs.")
    flags.DEFINE_float("tol", None, "Relative tolerance of the eigenpairs.")
    flags.DEFINE_integer("density_probes", None, "Random vectors of the density.")
    flags.DEFINE_integer("density_steps", None, "Lanczos steps of each.")
    flags.DEFINE_integer("trace_probes", None, "Random vectors of the energies.")
    flags.DEFINE_integer("block_rank", None, "Eigenvalues per block.")
    flags.DEFINE_string("by", None, "Regular expression: a path's block.")
    flags.DEFINE_integer("slice_points", None, "Points of a slice per axis; 0: none.")
    flags.DEFINE_float("radius", None, "How far slices go, in units of the default.")
    flags.DEFINE_integer("seed", None, "Seed of all random vectors.")
    cli.run(main)
