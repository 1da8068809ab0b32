"""Where rows of metrics go besides their file: TensorBoard, Weights & Biases, MLflow.

The prefix and each arm are separate series. Their metrics have the same names, so one
chart shows them all. A resumed run continues its series, and repeats in them the steps
after its checkpoint. If a series fails, it gets no more rows, and training continues.
"""

import contextlib
import importlib.util
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import tensorboardX

from bulk_sgd.lab.files import atomic

FILE = "loggers.json"  # the names of the series in services outside of the workdir


class Series(NamedTuple):
    """The prefix or an arm in one logger."""

    log: Callable  # takes numbers by name, and their step
    close: Callable  # takes the status of its stretch, as in `files.record`
    id: str | None = None  # by which a resumed run finds the series


def _tensorboard(config, workdir, arm, known):
    board = tensorboardX.SummaryWriter(str(workdir / "tensorboard" / arm))

    def log(numbers, step):
        for name, number in numbers.items():
            board.add_scalar(name, number, step)
        board.flush()

    return Series(log, lambda status: board.close())


def _wandb(config, workdir, arm, known):
    import wandb

    entity, _, project = config["wandb"].rpartition("/")
    run = wandb.init(
        project=project,
        entity=entity or None,
        group=str(workdir)[-128:],  # the longest name that is allowed
        name=f"{workdir.name}/{arm}",
        id=known,
        resume="allow",
        config=config,
        dir=workdir,
        reinit="create_new",  # the series of a run are open side by side
        settings=wandb.Settings(console="off"),
    )
    return Series(
        lambda numbers, step: run.log(numbers, step=step),
        lambda status: run.finish(int(status in _UNFINISHED)),  # an exit code
        run.id,
    )


def _mlflow(config, workdir, arm, known):
    import mlflow

    client = mlflow.MlflowClient()
    if known is None:
        run = client.create_run(
            _mlflow_experiment(client, config["mlflow"]),
            run_name=f"{workdir.name}/{arm}",
            tags={"workdir": str(workdir)},
        )
        known = run.info.run_id
        client.log_dict(known, config, "config.json")
    else:
        client.update_run(known, "RUNNING")

    def log(numbers, step):
        now = int(1000 * time.time())
        entities = [
            mlflow.entities.Metric(name, number, now, step)
            for name, number in numbers.items()
        ]
        client.log_batch(known, entities)

    def close(status):
        client.set_terminated(known, _UNFINISHED.get(status, "FINISHED"))

    return Series(log, close, known)


def _mlflow_experiment(client, name):
    """The id of an experiment, which is made if missing."""
    if (found := client.get_experiment_by_name(name)) is None:
        try:
            return client.create_experiment(name)
        except Exception:
            # Another run of a sweep may have made it meanwhile.
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    return found.experiment_id


# What MLflow calls the ends of stretches that may go on.
_UNFINISHED = {"failed": "FAILED", "interrupted": "KILLED"}

# By config field, which is also the name of the logger's package.
LOGGERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


def check(config):
    """Raises ValueError if the package of a logger is missing."""
    for field in LOGGERS.keys() - {"tensorboard"}:  # the lab always installs that one
        found = importlib.util.find_spec(field) if config[field] else None
        # A folder of that name, such as W&B leaves, has no origin.
        if config[field] and getattr(found, "origin", None) is None:
            raise ValueError(
                f"config.{field} is {config[field]!r}, but the package {field} is "
                f"missing; install it with pip install '.[{field}]' in a clone of "
                "bulk_sgd, or set the field to ''."
            )


class Loggers:
    """The loggers that a plain config asks for; the first row of an arm opens them."""

    def __init__(self, config: dict, workdir):
        self._config, self._workdir = config, pathlib.Path(workdir)
        self._path = self._workdir / FILE
        self._known = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._open = {}

    def write(self, row: dict):
        """Takes a row as `MetricWriter.write` returns it.

        Raises what a logger raises at the first row of a new run, such as a wrong name.
        """
        arm, step = row["arm"], row["step"]
        if arm not in self._open:
            self._begin(arm)
        numbers = _numbers(row)
        self._each(arm, lambda series: series.log(numbers, step))

    def close(self, statuses: dict[str, str]):
        """Ends all series; `statuses` say how each arm has ended."""
        for arm in self._open:
            self._each(arm, lambda series, arm=arm: series.close(statuses[arm]))

    def _begin(self, arm):
        new = not (self._open or self._known)
        self._open[arm], known = {}, self._known.setdefault(arm, {})
        for name in [name for name in LOGGERS if self._config.get(name)]:
            with contextlib.nullcontext() if new else self._giving_up(name, arm):
                place = self._config, self._workdir, arm, known.get(name)
                series = self._open[arm][name] = LOGGERS[name](*place)
                if series.id:
                    known[name] = series.id
        if known:
            atomic.write_text(self._path, json.dumps(self._known) + "\n")

    def _each(self, arm, call):
        for name, series in [*self._open[arm].items()]:
            with self._giving_up(name, arm):
                call(series)

    @contextlib.contextmanager
    def _giving_up(self, name, arm):
        """Where the body fails, says so and leaves this series out from then on."""
        try:
            yield
        except Exception as error:
            self._open[arm].pop(name, None)
            sentence = f"{name} logs no more of {arm}: {type(error).__name__}: {error}"
            print(f"{self._workdir}: {sentence}", file=sys.stderr)


def _numbers(row) -> dict[str, float]:
    """The numbers of a row, and those of its lists by their place.

    >>> _numbers({"arm": "sgd", "step": 5, "loss": 0.5, "own": [3, None], "kept": None})
    {'loss': 0.5, 'own/1': 3}
    """
    found = {}
    for name, value in row.items():
        items = {name: value}
        if isinstance(value, list):
            items = {f"{name}/{place}": x for place, x in enumerate(value, 1)}
        found |= {k: x for k, x in items.items() if isinstance(x, int | float)}
    found.pop("step", None)
    return found
