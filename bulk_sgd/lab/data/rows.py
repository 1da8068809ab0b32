"""Arrays that read their rows when indexed, so a process reads only its own."""

import dataclasses
from collections.abc import Callable

import numpy as np

_CHUNK = 4096  # rows read at a time for statistics of all


@dataclasses.dataclass(frozen=True)
class LazyRows:
    """An array that is not in memory; indexing it with a slice or int array reads.

    `read` takes the numbers of rows, int `(m,)`, and returns `(m, *shape[1:])`.
    `source` are the rows that these were mapped from, if any.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[np.ndarray], np.ndarray]
    source: "LazyRows | None" = None

    def __len__(self):
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, index) -> np.ndarray:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        return self.read(index)

    def map(self, fn, dtype) -> "LazyRows":
        """The rows after `fn`, which takes any number of them and keeps their shape."""
        read = lambda numbers: fn(self.read(numbers))
        return LazyRows(self.shape, np.dtype(dtype), read, self.raw)

    @property
    def raw(self) -> "LazyRows":
        """The rows before any `map`."""
        return self if self.source is None else self.source

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation along the last axis over all rows, in float64.

        Chunk by chunk: Chan, Golub and LeVeque, *Updating formulae and a pairwise
        algorithm for computing sample variances*, 1982.
        """
        axes = tuple(range(self.ndim - 1))
        count, mean, squares = 0, 0.0, 0.0
        for start in range(0, len(self), _CHUNK):
            chunk = self[start : start + _CHUNK]
            added = chunk.size // chunk.shape[-1]
            # float32 sums over millions of pixels would lose digits.
            shift = chunk.mean(axes, dtype=np.float64) - mean
            squares = squares + chunk.var(axes, dtype=np.float64) * added
            squares = squares + shift**2 * (count * added / (count + added))
            mean = mean + shift * (added / (count + added))
            count += added
        return mean, np.sqrt(squares / count)
