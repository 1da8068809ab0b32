"""Writes the report of a run, of a study, or of several side by side."""

import pathlib

from bulk_sgd.lab.report import run_report, study_report
from bulk_sgd.lab.report.study import is_study


def write_report(workdir, *others, labels=(), out=None) -> pathlib.Path:
    """Writes the report of a run or of a study, finished or not.

    The page is self-contained. Its figures are saved beside it as PNG, PDF and SVG. A
    sweep or study also has every number in `tables.json`. A study has the claims table
    in `claims.md`, and so has a sweep that decides a claim of the paper.

    Args:
      workdir: folder of a run, of a sweep, or of several sweeps.
      *others: more such folders, for a page that compares them all.
      labels: one label for each folder, by default its name. Folders with the same
        label count as seeds of one setting.
      out: folder of the page and its figures, by default `workdir/report`, of a
        comparison `workdir/comparison`.

    Returns:
      The path of the page.

    Raises:
      FileNotFoundError: a folder holds neither a run nor a sweep.
      ValueError: a file of a run is damaged, a run has no metric row, there are
        labels, but not one for each folder, or `out` cannot be made.

    Example:
      >>> write_report("runs/mnist")  # doctest: +SKIP
      PosixPath('runs/mnist/report/index.html')
    """
    if others or labels:
        folder = out or pathlib.Path(workdir) / "comparison"
        return study_report.write_comparison([workdir, *others], labels, folder)
    kind = study_report if is_study(workdir) else run_report
    return kind.write_report(workdir, out)
