"""Writes the report of a run or of a study."""

import pathlib

from bulk_sgd.lab.report import run_report, study_report
from bulk_sgd.lab.report.study import is_study


def write_report(workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes the report of a run or of a study, finished or not, into `workdir/report`.

    The page is self-contained. Beside it lie its figures as PNG and PDF and, for a
    study, the claims table as `claims.md` and every number as `tables.json`.

    Args:
      workdir: folder of a run, of a sweep, or of several sweeps.

    Returns:
      The path of the page.

    Raises:
      FileNotFoundError: `workdir` holds none of them.
      ValueError: a file of a run is damaged, or a run has no metric row.

    Example:
      >>> write_report("runs/mnist")  # doctest: +SKIP
      PosixPath('runs/mnist/report/index.html')
    """
    kind = study_report if is_study(workdir) else run_report
    return kind.write_report(workdir)
