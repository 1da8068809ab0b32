"""The order of mini-batches."""

import functools

import numpy as np

from bulk_sgd import checks


def batch_indices(
    seed: int, start_step: int, num_steps: int, num_examples: int, batch_size: int
) -> np.ndarray:
    """Indices (num_steps, batch_size) int32 of mini-batches, from seed and step alone.

    Every epoch is its own permutation, cut into num_examples // batch_size batches; the
    remainder is dropped. However the steps are split into calls, the rows are the same,
    so a resumed run sees the same batches.

    Raises:
      ValueError: seed or start_step negative; batch_size not in [1, num_examples].

    >>> rows = batch_indices(0, 0, 5, num_examples=10, batch_size=2)
    >>> sorted(rows.ravel().tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    >>> bool((batch_indices(0, 3, 2, 10, 2) == rows[3:]).all())
    True
    """
    checks.integer("seed", seed, 0)
    checks.integer("start_step", start_step, 0)
    checks.integer("batch_size", batch_size, 1, num_examples, "the number of examples")
    rows = np.empty((num_steps, batch_size), np.int32)
    for row, step in enumerate(range(start_step, start_step + num_steps)):
        epoch, batch = divmod(step, num_examples // batch_size)
        order = _epoch_order(seed, epoch, num_examples)
        rows[row] = order[batch * batch_size : (batch + 1) * batch_size]
    return rows


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    # The epoch as a second word of entropy would clash with seeds above 2³². And
    # numpy promises the bits of Philox across versions, but not its permutations.
    sequence = np.random.SeedSequence(seed, spawn_key=(epoch,))
    bits = np.random.Philox(sequence).random_raw(num_examples)
    return np.argsort(bits, kind="stable")
