"""The problem and the timers that the groups of `benchmark.py` share."""

import gc
import random
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import bulk_sgd
from bulk_sgd.curvature import operators
from bulk_sgd.lab import config
from bulk_sgd.lab.training.experiment import Experiment
from bulk_sgd.lab.training.state import Task, TrainState
from bulk_sgd.lab.training.steps import Programs
from bulk_sgd.linalg import basis

RANK, TOL, BATCH = 10, 1e-3, 50


class Problem(NamedTuple):
    """A network in training: its config, programs, data, batches and state."""

    fields: ConfigDict
    programs: Programs
    task: Task
    indices: jax.Array
    state: TrainState

    @property
    def train(self) -> bulk_sgd.Objective:
        """The loss over the whole training set."""
        return self.task.train

    @property
    def params(self):
        """The parameters at which curvature is measured."""
        return self.state.params

    @property
    def matvec(self):
        """The Hessian of `train` at `params`."""
        return bulk_sgd.hessian(self.train, self.params)

    @property
    def start(self):
        """The start vector of every solver that takes one."""
        return basis.random_normal(jax.random.key(0), self.params)


def problem(quick: bool) -> Problem:
    """The MLP of Song et al. on MNIST-5k after 500 steps of SGD; `quick`: a toy."""
    fields = config.default()
    fields.loss.reduction = "half_sum"
    fields.num_steps = 60 if quick else 500
    if quick:
        fields.data.num_train, fields.data.num_test = 300, 50
        fields.model.hidden = (16,)
    return trained(fields)


def trained(fields: ConfigDict) -> Problem:
    """The experiment of a config, after its `num_steps` steps of SGD."""
    fields.eval_every, fields.switch.step = fields.num_steps, 0
    experiment = Experiment(fields)
    task, indices = experiment.task, experiment.indices(0)
    programs = experiment.programs
    state, _ = programs.train(
        experiment.start(), task, indices, fields.num_steps,
        projected=False,
    )  # fmt: skip
    return Problem(fields, programs, task, indices, state)


def gradient_and_matvec(loss, params):
    """The gradient plus a little of a Hessian product, so that XLA drops neither."""
    grads, product = jax.linearize(jax.grad(loss), params)
    return jax.tree.map(lambda g, x: g + 1e-6 * x, grads, product(grads))


def residuals(matvec, eigenvalues, eigenvectors):
    """‖H u − λ u‖ of each pair by products of its own, shape `(k,)`."""
    return _residuals(
        operators.as_pytree(matvec), jnp.asarray(eigenvalues), eigenvectors
    )


@jax.jit
def _residuals(matvec, eigenvalues, eigenvectors):
    def length(pair):
        value, row = pair
        error = basis.subtract(matvec(row), basis.scale(value, row))
        return basis.norm(error) / basis.norm(row)

    return jax.lax.map(length, (eigenvalues, eigenvectors))


def bare_products(matvec, vector, count):
    """`count` linearized products and nothing else, at the precision of a solve."""
    with jax.default_matmul_precision("highest"):
        apply = operators.linearize(matvec)
        again = lambda _, vector: basis.scale(1e-2, apply(vector))
        return jax.lax.fori_loop(0, count, again, vector)


def timed(fn, *args):
    """The finished result of `fn` and the seconds that it took."""
    start = time.perf_counter()
    result = jax.block_until_ready(fn(*args))
    return result, time.perf_counter() - start


def interleaved(contestants, repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, in rounds that call everyone once, in random order.

    Args:
      contestants: functions without arguments by name, all of them warm.
      repeats: number of rounds.
    """
    seconds = {name: [] for name in contestants}
    order, shuffle = list(contestants), random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            gc.collect()  # so that nobody pays for the garbage of another
            seconds[name].append(timed(contestants[name])[1])
    return seconds


def median_ratio(seconds, base) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(mine / other for mine, other in zip(seconds, base))
