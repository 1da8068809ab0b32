"""Data read while training: threads read mini-batches ahead of the devices.

Seed and step alone decide which examples a batch has, as for data in memory. So a
resumed run needs no state of the reader and sees the same batches to the last bit.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_THREADS = 4


class Batches(NamedTuple):
    """The examples of several steps.

    Attributes:
      inputs: array `(num_steps, batch_size, ...)`.
      targets: array `(num_steps, batch_size, ...)`.
    """

    inputs: Any
    targets: Any


class Reader(contextlib.AbstractContextManager):
    """Batches from any arrays that read rows when indexed by an int array.

    While the devices take the steps of one call, threads read the batches of the next.
    Memory holds at most the batches of two calls, and one per thread.

    Args:
      inputs: array-like with the examples along the first axis; it may lie on disk.
      targets: the same.
      indices: function from a step and a number of steps to int `(steps, batch_size)`,
        the examples of each step; called from several threads.
      num_steps: steps per call.

    Example:
      >>> import numpy as np
      >>> from bulk_sgd.lab.data.batches import batch_indices
      >>> from bulk_sgd.lab.data.reader import Reader
      >>> x, y = np.arange(10) ** 2, np.arange(10)
      >>> indices = lambda step, steps: batch_indices(0, step, steps, 10, batch_size=2)
      >>> with Reader(x, y, indices, num_steps=5) as reader:
      ...     batches = reader.read(0)
      >>> batches.inputs.shape, sorted(batches.targets.ravel().tolist())
      ((5, 2), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """

    def __init__(self, inputs, targets, indices: Callable, num_steps: int):
        self._inputs, self._targets, self._indices = inputs, targets, indices
        self._num_steps = num_steps
        self._last, self._iterator = None, None

    def read(self, first_step: int) -> Batches:
        """The batches of the `num_steps` steps after `first_step`.

        They are ready if they follow the last ones. The last ones stay at hand, because
        a state is measured on the batches that it is then trained on.
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
