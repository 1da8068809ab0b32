"""Writes the report of a workdir, be it that of a run or of a study."""

import pathlib

from bulk_sgd.lab.report import run_report, study_report
from bulk_sgd.lab.report.study import is_study


def write_report(workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes the report of a run or of a study, finished or not; returns its page.

    Raises:
      FileNotFoundError: `workdir` holds neither.
      ValueError: a file in it is damaged.
    """
    kind = study_report if is_study(workdir) else run_report
    return kind.write_report(workdir)
