"""Vectors packed into one array, so that a solver compiles in half the time.

Operations on vectors are compiled leaf by leaf, which takes most of the compile time of
a solver for a network of many arrays. A packed vector is one array; only the products
with an operator see the leaves.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from bulk_sgd.linalg import basis, xla

# The last axis of packed vectors. They have two axes because XLA's CPU compiler turns
# the product of a matrix with an array of one axis into a sum, many times as slow.
_WIDTH = 128
_MAX_SIZE = 2**31 - 2**12  # indices are int32
# Random bits take several times the memory of the numbers made from them, so they are
# drawn in this many turns.
_NUM_DRAWS = 16


def choose(like, spans_devices: bool):
    """`Packed` or `Unpacked`, for vectors like `like`, whose leaves have one dtype.

    Vectors on several devices stay as they are, since packing would gather them.
    """
    one = len(jax.tree.leaves(like)) == 1
    too_long = basis.size(like) > _MAX_SIZE
    return (Unpacked if spans_devices or one or too_long else Packed)(like)


@dataclasses.dataclass(frozen=True)
class Unpacked:
    """Vectors as they are, with the shapes and dtypes of `like`."""

    like: Any

    def pack(self, vector):
        """`vector` itself."""
        return vector

    def unpack(self, vector):
        """`vector` itself."""
        return vector

    def combine(self, coefficients, rows):
        """`basis.combine` for a basis of several rows."""
        return basis.combine(coefficients, rows)

    def random_normal(self, key):
        """A vector of independent standard normal entries."""
        return basis.random_normal(key, self.like)


@dataclasses.dataclass(frozen=True)
class Packed:
    """Vectors like `like` as one array of shape `(n, 128)`, padded with zeros."""

    like: Any

    def pack(self, vector):
        """The array of a vector."""
        leaves = jax.tree.leaves(vector)
        padding = jnp.zeros(-basis.size(self.like) % _WIDTH, leaves[0].dtype)
        array = xla.concatenate([*leaves, padding])
        return array.reshape(-1, _WIDTH)

    def unpack(self, array):
        """The vector of an array."""
        leaves, treedef = jax.tree.flatten(self.like)
        flat = array.ravel()
        return treedef.unflatten(
            flat[start : start + x.size].reshape(x.shape)
            for x, start in zip(leaves, self._starts)
        )

    def combine(self, coefficients, rows):
        """An unpacked basis from packed rows, one at a time to save memory."""

        def write(index, result):
            vector = self.unpack(basis.combine(coefficients[index], rows))
            return basis.set_row(result, index, vector)

        count = len(coefficients)
        return jax.lax.fori_loop(0, count, write, basis.zeros(self.like, count))

    def random_normal(self, key):
        """The array of a vector of independent standard normal entries."""
        dtype = jax.tree.leaves(self.like)[0].dtype
        size = -(-self._num_rows // _NUM_DRAWS)
        draw = lambda key: jax.random.normal(key, (size, _WIDTH), dtype)
        drawn = jax.lax.map(draw, jax.random.split(key, _NUM_DRAWS))
        entries = drawn.reshape(-1, _WIDTH)[: self._num_rows]
        place = jnp.arange(entries.size).reshape(entries.shape)
        return jnp.where(place < basis.size(self.like), entries, 0)

    @property
    def _num_rows(self):
        return -(-basis.size(self.like) // _WIDTH)

    @property
    def _starts(self):
        sizes = [x.size for x in jax.tree.leaves(self.like)]
        return [0, *itertools.accumulate(sizes)][:-1]
