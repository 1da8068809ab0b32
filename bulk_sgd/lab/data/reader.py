"""Data read while training: threads read mini-batches ahead of the devices.

The seed and the step alone choose the examples of a batch, as for data in memory, so a
resumed run needs no state of the reader.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_THREADS = 4


class Batches(NamedTuple):
    """The examples of several steps: arrays `(num_steps, batch_size, ...)`."""

    inputs: Any
    targets: Any


class Reader(contextlib.AbstractContextManager):
    """Batches of `num_steps` steps from arrays that read rows when indexed.

    While the devices take the steps of one call, threads read the batches of the next.
    Memory holds at most the batches of two calls, and one per thread. The threads call
    `indices(step, steps)`, which returns int `(steps, batch_size)`.
    """

    def __init__(self, inputs, targets, indices: Callable, num_steps: int):
        self._inputs, self._targets, self._indices = inputs, targets, indices
        self._num_steps = num_steps
        self._last, self._iterator = None, None

    def read(self, first_step: int) -> Batches:
        """The batches of the `num_steps` steps after `first_step`.

        The last ones stay: a state is measured on the batches that then train it.
        """
        last_step, last = self._last or (None, None)
        if first_step == last_step:
            return last
        if last is None or first_step != last_step + self._num_steps:
            self.close()
            self._iterator = self._open(first_step)
        self._last = last = None  # frees memory for the next ones
        read = [next(self._iterator) for _ in range(self._num_steps)]
        self._last = first_step, Batches(*map(np.stack, zip(*read)))
        return self._last[1]

    def _open(self, first_step: int):
        # Here, because importing takes a second and most runs do without.
        import grain

        def batch(step):
            rows = self._indices(first_step + step, 1)[0]
            return np.asarray(self._inputs[rows]), np.asarray(self._targets[rows])

        # Endless, because the reader does not know how many steps a run takes.
        steps = grain.MapDataset.range(2**31 - 1).map(batch)
        options = grain.ReadOptions(_THREADS, prefetch_buffer_size=self._num_steps)
        return iter(steps.to_iter_dataset(options))

    def close(self):
        """Ends the threads; the next `read` starts them anew."""
        if self._iterator is not None:
            self._iterator.close()
        self._last, self._iterator = None, None

    def __exit__(self, *error):
        self.close()
