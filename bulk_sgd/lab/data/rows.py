"""Arrays whose rows are read when they are asked for.

Of several processes each needs the examples of its own devices alone; a `LazyRows`
stands for all of them and holds none.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

_BLOCK = 4096  # rows at a time, where all are needed one after the other


@dataclasses.dataclass(frozen=True)
class LazyRows:
    """An array that is not in memory; indexing it with a slice or int array reads.

    Attributes:
      shape: with the number of rows first.
      dtype: of what is read.
      read: from the numbers of rows, int `(m,)`, to the array `(m, *shape[1:])`.

    Example:
      >>> import numpy as np
      >>> from bulk_sgd.lab.data.rows import LazyRows
      >>> squares = lambda n: np.stack([n, n**2], axis=1)
      >>> rows = LazyRows((1_000, 2), np.dtype(int), squares)
      >>> rows[3:5].tolist(), len(rows)
      ([[3, 9], [4, 16]], 1000)
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[np.ndarray], np.ndarray]

    def __len__(self):
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, index) -> np.ndarray:
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            index = np.arange(chosen.start, chosen.stop, chosen.step)
        return self.read(index)

    def map(self, fn, dtype) -> "LazyRows":
        """The rows after `fn`, which keeps their shape and takes any number of them."""
        return LazyRows(
            self.shape, np.dtype(dtype), lambda numbers: fn(self.read(numbers))
        )

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation along the last axis, in float64.

        All rows are read, a block at a time, in an order that does not depend on who
        asks (Chan, Golub and LeVeque, *Updating formulae and a pairwise algorithm for
        computing sample variances*, 1982).
        """
        axes = tuple(range(self.ndim - 1))
        count, mean, squares = 0, 0.0, 0.0
        for start in range(0, len(self), _BLOCK):
            block = self[start : start + _BLOCK]
            added = block.size // block.shape[-1]
            # float32 sums over millions of pixels would lose digits.
            shift = block.mean(axes, dtype=np.float64) - mean
            squares = squares + block.var(axes, dtype=np.float64) * added
            squares = squares + shift**2 * (count * added / (count + added))
            mean = mean + shift * (added / (count + added))
            count += added
        return mean, np.sqrt(squares / count)
