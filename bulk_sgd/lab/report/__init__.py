"""Reports on workdirs: one self-contained HTML page, its figures and tables.

`python -m bulk_sgd.report --workdir=runs/mnist` writes `report/index.html` into the
workdir, and its figures beside it as PNG and PDF. The page says what happened in a run;
for a sweep, or a folder of sweeps, it gives the claims and one section per axis.
"""
