"""Analyzes the checkpoints of a run: `python -m bulk_sgd.analyze --workdir=RUN`.

Writes `analysis/` into the workdir: a page, its figures, and all numbers as JSON. The
same command resumes an interrupted analysis.
"""

import dataclasses
import pathlib

from absl import flags

from bulk_sgd.lab.analysis.analyze import analyze
from bulk_sgd.lab.analysis.checkpoints import RunPoints
from bulk_sgd.lab.analysis.point import Settings
from bulk_sgd.lab.analysis.report import write_report
from bulk_sgd.lab.commands import cli
from bulk_sgd.lab.files import record

flags.disclaim_key_flags()


def main(argv):
    """Analyzes `--workdir`; wrong input ends it with one sentence and status 2."""
    del argv
    cli.prepare()
    values = flags.FLAGS
    names = {field.name for field in dataclasses.fields(Settings)} - {"mode"}
    given = {name: values[name].value for name in names}
    with cli.refusing(), cli.reporting(values.workdir):
        settings = Settings(**{k: v for k, v in given.items() if v is not None})
        points = RunPoints(values.workdir, values.arm, values.every, values.checkpoints)
        settings = dataclasses.replace(settings, mode=points.mode)
        folder = pathlib.Path(values.output or pathlib.Path(values.workdir, "analysis"))
        about = {"run": points.record, "notes": points.notes, **record.provenance()}
        options = {"progress": values.progress, "about": about}
        analyze(points, points.objective, folder, settings, **options)
        print(write_report(folder))


def run():
    """Entry point of the command line."""
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("output", None, "Folder to write to; WORKDIR/analysis.")
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
    cli.run(main, "workdir")
