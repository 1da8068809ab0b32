r"""Bases in factors: for each matrix of parameters, all vectors share a few directions.

Reshaped like the weight matrix that it belongs to, a leading eigenvector of the Hessian
is nearly of low rank (Wu, Zhu, Wu, Wang and Ge, *Dissecting Hessian*, arXiv
2010.04261): it uses a few directions in the input space of the layer. We find that
different leading eigenvectors use the same ones. So the m × n matrices X_1 … X_k of k
basis vectors are stored as X_i = F Z_i: a *frame* F with q orthonormal columns, and
*coordinates* Z_i, q × n. That takes q (m + k n) numbers in place of k m n. Parameters
that are vectors or scalars stay dense.

Frames keep inner products. So the rows are orthonormal if their coordinates are, and
linear algebra on the rows is linear algebra on the coordinates.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from bulk_sgd.linalg import basis, frames, xla
from bulk_sgd.linalg.matrices import sides


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("coordinates", "frames"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Factored(basis.Form):
    """A basis of k rows that shares frames between them.

    Attributes:
      coordinates: a dense basis of k rows, of the shapes that the frames give.
      frames: pytree like the parameters, with a `frames.Frame` for each leaf in
        factors, and None for a dense one.
    """

    coordinates: Any
    frames: Any

    @property
    def factors(self) -> int:
        """The number q of directions in a frame, 0 if no leaf is in factors."""
        leaves = jax.tree.leaves(self.frames, is_leaf=frames.is_leaf)
        return max((len(x.vectors) for x in leaves if x is not None), default=0)

    def lift(self, coordinates):
        """The vector that has these coordinates."""
        return frames.lift(self.frames, coordinates)

    def compress(self, vector):
        """The coordinates of a vector, without what is outside of the frames."""
        return frames.compress(self.frames, vector)

    def inner(self, vector):
        """Inner products of the rows with a vector, shape `(k,)`."""
        cast = lambda x, row: x.astype(row.dtype)
        vector = jax.tree.map(cast, self.compress(vector), self.coordinates)
        return basis.inner(self._joined, xla.joined(vector, self._num_rows))

    def gram(self, other):
        """Inner products with the m rows of another basis, shape `(k, m)`."""
        each = basis.map_in_turn if isinstance(other, Factored) else basis.map_rows
        return basis.gram(self.coordinates, each(self.compress, other))

    def combine(self, coefficients):
        """Combines the rows: `(k,)` gives a vector, `(m, k)` a basis in factors."""
        if coefficients.ndim > 1:
            return self.mix(functools.partial(basis.combine, coefficients))
        found = basis.combine(coefficients, self._joined)
        like = basis.like(self.coordinates)
        return self.lift(xla.separated(found, like, self._num_rows))

    @property
    def _joined(self):
        """The coordinates, with small arrays joined: XLA compiles one product."""
        join = lambda row: xla.joined(row, self._num_rows)
        return basis.map_rows(join, self.coordinates)

    @property
    def _num_rows(self):
        return basis.num_rows(self.coordinates)

    def mix(self, change):
        """The basis with `change(coordinates)`, in the same frames."""
        return dataclasses.replace(self, coordinates=change(self.coordinates))


def zeros(like, num_rows: int, factors: int, axes=None) -> Factored:
    """A factored basis of `num_rows` zero rows, in frames of random directions.

    `matrices.sides` explains `axes`.
    """
    dtype = basis.working_dtype(like)

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), dtype), like)
    leaves, treedef = jax.tree.flatten(shapes)
    made = treedef.unflatten(
        side and frames.start(leaf, side, factors, jax.random.key(index))
        for index, (leaf, side) in enumerate(zip(leaves, sides(like, factors, axes)))
    )
    shapes = jax.eval_shape(frames.compress, made, shapes)
    return Factored(basis.zeros(shapes, num_rows, dtype), made)


def cut(rows, factors: int, axes=None):
    """A dense basis of k rows in frames of `factors` directions: the best, by SVD.

    Returns the `Factored` basis, orthonormal, and the share `(k,)` of the squared
    length of each row that is kept; 0 for a row of zeros.
    """
    like = basis.like(rows)
    leaves, treedef = jax.tree.flatten(basis.widen(rows))
    found = [
        side and _best(x, side, factors)
        for x, side in zip(leaves, sides(like, factors, axes))
    ]
    made = treedef.unflatten(found)
    compress = functools.partial(frames.compress, made)
    coordinates = basis.map_rows(compress, treedef.unflatten(leaves))
    before, after = (basis.squared_norms(x) for x in (rows, coordinates))
    kept = jnp.where(before > 0, after / jnp.where(before > 0, before, 1), 0)
    mixing = frames.orthonormalizing(basis.gram(coordinates, coordinates))
    return Factored(basis.combine(mixing, coordinates), made), kept


def _best(rows, sides, factors):
    found = directions(rows, sides)[0]
    return frames.of(found, rows.shape[1:], sides, factors, jax.random.key(0))


def directions(rows, sides):
    """The directions that the matrices of k rows share, the best first, by SVD.

    Returns orthonormal vectors `(number, m, p)`, with p = min(m, k·n), and the squared
    lengths `(number, p, k)` of the rows along them.
    """
    matrices = sides.matrices(rows)
    count, number, m, n = matrices.shape
    beside = jnp.moveaxis(matrices, 0, 2).reshape(number, m, count * n)
    vectors, values, right = jnp.linalg.svd(beside, full_matrices=False)
    right = right.reshape(*right.shape[:2], count, n)
    return vectors, values[..., None] ** 2 * jnp.sum(right**2, axis=-1)
