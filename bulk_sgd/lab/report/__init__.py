"""Reports on workdirs: one self-contained HTML page, its figures and tables.

`python -m bulk_sgd.report --workdir=runs/mnist` writes `report/index.html` into the
workdir, ready to be mailed or archived, and its figures beside it as PNG and PDF. Of a
run the page says what happened; of a sweep, or a folder of sweeps, it gives the claims
and one section per axis.
"""
