"""Runs from Python: `run` an experiment, or `load` what one has left."""

import pathlib

import numpy as np
from matplotlib.axes import Axes

from bulk_sgd import checks
from bulk_sgd.lab.files import identities, metrics, parameters
from bulk_sgd.lab.report.results import PREFIX, RunResults, read_run
from bulk_sgd.lab.report.run_report import figures_of
from bulk_sgd.lab.sweep import workdir as sweep_workdir
from bulk_sgd.lab.training.train import train_and_evaluate


class Result:
    """What a run has left: the rows by arm, and what can be made of them.

    Attributes:
      workdir: the folder of the run.
      info: run.json, a dict.
      arms: names of the arms, started or not.

    Methods take the name of an arm with or without white space, or "prefix". They raise
    ValueError for another name.
    """

    def __init__(self, found: RunResults):
        self._found = found
        self.workdir, self.info, self.arms = found.workdir, found.info, found.arms

    @property
    def records(self) -> list[dict]:
        """All rows of metrics as dicts, those of the prefix first, then by arm."""
        rows = self._found.rows
        return [row for arm in (PREFIX, *self.arms) for row in rows.get(arm, [])]

    def frame(self):
        """The `records` as a pandas DataFrame, if pandas is installed."""
        return _frame(self.records)

    def __repr__(self):
        rows = len(self.records)
        of = f"{self.info['status']}, {', '.join(self.arms)}, {rows} rows of metrics"
        return f"Result({str(self.workdir)!r}: {of})"

    def steps(self, arm: str):
        """The steps of the rows of an arm, ascending, shape (n,)."""
        return self._found.steps(self._known(arm))

    def series(self, arm: str, key: str):
        """A field along `steps(arm)`, shape (n,), NaN where null."""
        self._check(key, np.isscalar, "a list; take lists(arm, key)")
        return self._found.series(self._known(arm), key)

    def lists(self, arm: str, key: str):
        """A field that is a list along `steps(arm)`, shape (n, m), NaN where null."""
        self._check(key, np.iterable, "a number; take series(arm, key)")
        return self._found.lists(self._known(arm), key)

    def eigenvalues(self, arm: str):
        """λ_1 … λ_k along `steps(arm)`, shape (n, k), NaN where null."""
        return self._found.eigenvalues(self._known(arm))

    def _known(self, arm):
        arm = identities.compact(arm)
        checks.one_of("arm", arm, (PREFIX, *self.arms))
        return arm

    def _check(self, key, is_right, other):
        rows = self.records
        checks.one_of("key", key, {name for row in rows for name in row})
        known = (row[key] for row in rows if row.get(key) is not None)
        if not all(map(is_right, known)):
            raise ValueError(f"key is {key!r}, {other}.")

    def parameters(self, arm: str) -> dict:
        """The last parameters of an arm: nested dicts of NumPy arrays.

        Raises FileNotFoundError where none were kept.
        """
        return parameters.read(self.workdir, self._known(arm))

    def axes(self, figure: str = "loss") -> list[Axes]:
        """The axes of a figure of the report, to restyle and save: its `.figure` too.

        `figure` is "loss", "alignment", "eigenvalues" or "cost". A basis in factors
        adds "cut", and measurements of your own add "own". `config.measures.step_every`
        adds "changes", "step_sharpness" and "eigenvectors"; `config.measures.every`
        adds "ranks".
        """
        figures = figures_of(self._found)
        checks.one_of("figure", figure, figures)
        draw, _ = figures[figure]
        return draw(self._found).axes


class SweepResult(dict):
    """The results of a sweep: a dict from the number of a cell to its `Result`.

    It has only the cells with a row of metrics. `cells` has the fields of every cell,
    including the cells that tuning added.
    """

    def __init__(self, workdir):
        found = sweep_workdir.read(workdir)
        self.workdir = pathlib.Path(workdir)
        self.cells: list[dict] = [*found["cells"], *found["added"]]
        folders = [
            sweep_workdir.cell_folder(workdir, i) for i in range(len(self.cells))
        ]
        begun = [(i, x) for i, x in enumerate(folders) if metrics.count(x)]
        super().__init__({index: load(folder) for index, folder in begun})

    @property
    def records(self) -> list[dict]:
        """The rows of all cells, each with the number and the fields of its cell."""
        return [
            {"cell": index, **self.cells[index], **row}
            for index, result in self.items()
            for row in result.records
        ]

    def frame(self):
        """The `records` as a pandas DataFrame, if pandas is installed."""
        return _frame(self.records)

    def __repr__(self):
        of = f"{len(self)} of {len(self.cells)} cells have rows"
        return f"SweepResult({str(self.workdir)!r}: {of})"


def _frame(records):
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "frame() needs pandas, which is not installed; records has the rows."
        ) from error
    return pd.DataFrame(records)


def run(config, workdir) -> Result:
    """Runs the experiment of a config, as `train_and_evaluate` does, and loads it.

    Example:
      >>> import tempfile
      >>> from bulk_sgd.lab import run
      >>> from bulk_sgd.lab.config import default
      >>> config = default()
      >>> config.data.num_train, config.model.hidden = 100, (8,)
      >>> config.num_steps, config.switch.step, config.arms = 4, 2, ("bulk_sgd",)
      >>> config.progress = config.tensorboard = False
      >>> with tempfile.TemporaryDirectory() as workdir:
      ...     result = run(config, workdir)
      ...     result.parameters("bulk_sgd")["dense_0"]["kernel"].shape
      (784, 8)
      >>> [row["step"] for row in result.records], result.eigenvalues("bulk_sgd").shape
      ([0, 2, 2, 4], (2, 10))
    """
    train_and_evaluate(config, workdir)
    return load(workdir)


def load(workdir) -> Result | SweepResult:
    """The run or the sweep in a workdir, finished or not.

    Raises FileNotFoundError or ValueError where there is none, or no row of metrics.
    """
    if (pathlib.Path(workdir) / sweep_workdir.FILE).is_file():
        return SweepResult(workdir)
    return Result(read_run(workdir))
