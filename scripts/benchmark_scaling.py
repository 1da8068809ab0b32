"""How time and memory of a solve grow: with parameters, data and rank."""

import math
import os
import statistics

import jax
import jax.numpy as jnp
from benchmark_common import RANK, TOL, bare_products, median_ratio, timed

import bulk_sgd
from bulk_sgd.lab import config
from bulk_sgd.lab.training.experiment import Experiment
from bulk_sgd.linalg import basis

_IMAGES = 100
_SIZES = tuple(10**power for power in range(4, 9))
_DATA = (1_000, 5_000, 20_000)
_RANKS = (1, 5, 20, 40)


def measure(repeats: int, quick: bool = False) -> dict[str, dict]:
    """A row per tanh MLP 784-w-w-10 at its initial parameters, images and rank.

    `vectors` is the memory that XLA reserves for the solve beyond its arguments (the
    result included) over the memory of the parameters. The documentation promises at
    most 2 rank + 10 + 4 and the result, plus activations where they are not small.
    `over matvecs` is the time of a solve over the time of its bare matvecs. Sizes that
    would not fit into the memory of the machine are skipped.

    Args:
      repeats: solves per row, whose median counts.
      quick: toys, to try it out.
    """
    if quick:
        cases = [(10**4, 50, 1), (10**4, 50, 2)]
    else:
        cases = [(size, _IMAGES, RANK) for size in _SIZES]
        cases += [(10**5, images, RANK) for images in _DATA]
        cases += [(10**5, 1_000, rank) for rank in _RANKS]
    rows = {}
    for size, images, rank in cases:
        name = f"{size:.0e} parameters, {images} images, rank {rank}"
        needed, there = 4 * size * (3 * rank + 20), _memory()
        if needed > 0.8 * there:
            print(f"{name} skipped: some {needed / 1e9:.0f} of {there / 1e9:.0f} GB")
            continue
        rows[name] = _row(*_network(size, images), rank, repeats)
        jax.clear_caches()
    return rows


def _network(size, images):
    """The full-data loss and the parameters of an MLP of about `size` of them."""
    fields = config.default()
    width = round((math.sqrt(794**2 + 4 * size) - 794) / 2)
    fields.model.hidden = (width, width)
    fields.data.num_train, fields.data.num_test = min(images, 5_000), 50
    experiment = Experiment(fields)
    train = experiment.task.train
    copies = images // train.num_examples
    index = jnp.tile(jnp.arange(train.num_examples), copies)
    return train.take(index), experiment.params


def _row(train, params, rank, repeats):
    solve = jax.jit(
        lambda train, params, start: bulk_sgd.top_eigenpairs(
            bulk_sgd.hessian(train, params), start, rank, TOL
        )
    )
    products = jax.jit(
        lambda train, params, start, count: bare_products(
            bulk_sgd.hessian(train, params), start, count
        )
    )
    start = basis.random_normal(jax.random.key(0), params)
    compiled = solve.lower(train, params, start).compile()
    used = compiled.memory_analysis()
    reserved = used.temp_size_in_bytes + used.output_size_in_bytes
    pairs, _ = timed(compiled, train, params, start)
    count = int(pairs.num_matvecs)
    timed(products, train, params, start, 1)
    ours, bare = [], []
    for _ in range(repeats):
        ours.append(timed(compiled, train, params, start)[1])
        bare.append(timed(products, train, params, start, count)[1])
    return {
        "parameters": basis.size(params),
        "matvecs": count,
        "seconds": statistics.median(ours),
        "over matvecs": median_ratio(ours, bare),
        "MB": reserved / 1e6,
        "vectors": reserved / (4 * basis.size(params)),
    }


def _memory():
    """Bytes of memory that are free on this machine."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
