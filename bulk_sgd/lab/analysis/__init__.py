"""The curvature along any training: spectra, traces, subspaces, layers and slices.

`analyze.analyze` takes points, which are names with parameters, and a loss. The command
`python -m bulk_sgd.analyze --workdir=RUN` takes the checkpoints of a run and makes a
page. `docs/analysis.md` lists what is measured, and every key of the result.
"""
