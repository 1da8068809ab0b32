"""Runs that take seconds, what they wrote, and cells of sweeps; shared by the tests."""

import json

from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.files import metrics
from bulk_sgd.lab.sweep import grid

RATE, RANK, SWITCH, STEPS, EVERY = 0.05, 3, 8, 20, 5


def tiny(**changes):
    """60 images, 10 hidden units; keywords set fields, `__` for dots."""
    config = config_lib.default()
    config.data.num_train, config.data.num_test = 60, 20
    config.model.hidden = (6,)
    config.batch_size, config.num_steps, config.eval_every = 10, STEPS, EVERY
    config.optimizer.learning_rate = RATE
    config.subspace.rank = RANK
    # Tight, so that two solves from other random directions agree to rounding.
    config.subspace.tol, config.subspace.max_matvecs = 1e-5, 200
    config.switch.step = SWITCH
    config.arms = ("sgd", "bulk_sgd")
    config.tensorboard = config.progress = False
    for name, value in changes.items():
        *groups, field = name.split("__")
        holder = config
        for group in groups:
            holder = holder[group]
        holder[field] = value
    return config


def on_subset(**changes):
    """A tiny run whose curvature is that of 30 images."""
    return tiny(subspace__data="subset", subspace__subset_size=30, **changes)


def rows_of(workdir, arm=None):
    lines = (workdir / metrics.FILE).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if arm in (None, row["arm"])]


def strip_times(rows):
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def numbers(workdir):
    return strip_times(rows_of(workdir))


# A sweep of four.
CELLS = grid.product(
    grid.values("seed", (0, 1)), grid.values("optimizer.learning_rate", (0.02, 0.05))
)


def quiet(_):
    """Takes lines of progress."""


def compilations(caplog, name):
    """How often a function has been compiled, as `jax.log_compiles` tells `caplog`."""
    told = f"Finished XLA compilation of jit({name})"
    return sum(told in entry.getMessage() for entry in caplog.records)
