"""Reports on workdirs: one self-contained HTML page, its figures and tables.

  python -m bulk_sgd.report --workdir=runs/mnist

writes `report/index.html` into the workdir, so that it can be mailed or archived, and
the same figures as PNG and PDF files beside it: of a run what happened in it, of a
sweep, or of a folder of sweeps, the claims and one section per axis.
"""

import pathlib

from bulk_sgd.lab.report import run_report, study_report
from bulk_sgd.lab.report.study import is_study


def write_report(workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes the report of a run or of a study, finished or not; returns its page.

    Raises:
      FileNotFoundError: if there is neither in `workdir`.
      ValueError: if a file of it is damaged.
    """
    kind = study_report if is_study(workdir) else run_report
    return kind.write_report(workdir)
