r"""Bases stored in factors: each row is, per matrix of parameters, of low rank.

Reshaped like the weight matrix that it belongs to, a leading eigenvector of the Hessian
is nearly of low rank (Wu, Zhu, Wu, Wang and Ge, *Dissecting Hessian*, arXiv
2010.04261). The matrix X of row i, m × n, is stored as Σ_q a_q b_qᵀ with r vectors a_q
and b_q: r (m + n) numbers in place of m n. Vectors and scalars stay dense.

Rows that are cut to rank r are no longer orthonormal. A small triangular matrix, the
*mixing* M, makes them so: the rows of the basis are M times the stored ones. Products
with the rows therefore need nothing but products with the factors.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from bulk_sgd.linalg import basis
from bulk_sgd.linalg.matrices import Sides, sides

einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
_multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("left", "right"),
    meta_fields=("sides",),
)
@dataclasses.dataclass(frozen=True)
class Factors:
    """One leaf of s stored rows, Σ_q left[i, q] ⊗ right[i, q].

    Attributes:
      left: `(s, r, ...)` with the axes of the leaf except its columns.
      right: `(s, r, ...)` with the axes of the leaf except its rows.
      sides: which axes these are.
    """

    left: jax.Array
    right: jax.Array
    sides: Sides

    @property
    def ndim(self) -> int:
        """The number of axes of the leaf, without that of the rows."""
        return self.left.ndim - 2 + len(self.sides.columns)

    @property
    def axes(self) -> tuple[list[int], list[int]]:
        """The axes of the leaf that `left` and `right` have."""
        rows, columns = self.sides
        return tuple(self.sides.without(side, self.ndim) for side in (columns, rows))

    @property
    def ends(self):
        """The smaller factor and the larger one, each with its axes of the leaf."""
        pairs = [*zip((self.left, self.right), self.axes)]
        return pairs if self.left.size < self.right.size else pairs[::-1]

    def with_ends(self, smaller, larger) -> "Factors":
        """Other rows, of the same shape, by their `ends`."""
        in_order = self.left.size < self.right.size
        pair = (smaller, larger) if in_order else (larger, smaller)
        return Factors(*pair, self.sides)

    def halves(self, rows):
        """Dense rows `(w, ...)` times the larger factors of the stored ones.

        Returns `(w, s, r, ...)` with the axes of the smaller factor.
        """
        (_, near), (larger, far) = self.ends
        w, s, q = range(self.ndim, self.ndim + 3)
        return self.times(rows, [w], larger, [s, q, *far], [w, s, q, *near])

    def times(self, rows, names, others, axes, result):
        """An einsum of dense rows, whose first axes have `names`, with something else.

        Where their last axis is contracted the product comes out transposed, or XLA
        would make a transposed copy of the rows.
        """
        whole = [*names, *range(self.ndim)]
        order = result
        if self.ndim - 1 not in result:
            kind = lambda name: (name not in whole, name not in axes)
            order = sorted(result, key=kind)  # batches, the rows' own, the others'
        product = einsum(rows, whole, others, axes, order)
        return product.transpose([order.index(name) for name in result])

    def inner(self, x):
        """Inner products of the stored rows with a leaf, shape `(s,)`."""
        return self.inner_of(self.halves(x[None]))[0]

    def inner_of(self, halves):
        """Inner products of dense rows, by their `halves`, with the stored rows."""
        terms = halves * self.ends[0][0][None]
        return jnp.sum(terms, axis=range(2, terms.ndim))

    def combine(self, weights):
        """The leaf of a linear combination of the stored rows, with weights `(s,)`."""
        (left, right), whole = self.axes, [*range(self.ndim)]
        s, q = self.ndim, self.ndim + 1
        scaled = basis.scale_rows(weights, self.left)
        return einsum(scaled, [s, q, *left], self.right, [s, q, *right], whole)

    def gram(self, other):
        """Inner products with the rows of another leaf of the same shape."""
        if not isinstance(other, Factors):
            return basis.map_rows(self.inner, other).T
        if self.sides != other.sides:
            identity = jnp.eye(len(other.left), dtype=other.left.dtype)
            return self.gram(jax.vmap(other.combine)(identity))
        left, right = self.axes
        s, q, t, p = range(self.ndim, self.ndim + 4)
        matrices = [axis for axis in left if axis in right]
        both = [s, q, t, p, *matrices]
        product = lambda x, y, kept: einsum(x, [s, q, *kept], y, [t, p, *kept], both)
        terms = product(self.left, other.left, left)
        terms *= product(self.right, other.right, right)
        return jnp.sum(terms, axis=(1, 3, *range(4, terms.ndim)))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("mixing", "stored"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Factored(basis.Form):
    """A basis of k rows, each a linear combination of s stored rows.

    Attributes:
      mixing: `(k, s)`, the weights of the stored rows.
      stored: pytree like the parameters. Each leaf is a `Factors`, which holds its part
        of the s rows as sums of outer products, or a dense array `(s, *leaf.shape)`.
    """

    mixing: jax.Array
    stored: Any

    @property
    def factors(self) -> int:
        """The number of terms per matrix, 0 if no leaf is in factors."""
        leaves = jax.tree.leaves(self.stored, is_leaf=is_factors)
        return max((x.left.shape[1] for x in leaves if is_factors(x)), default=0)

    def inner(self, vector):
        """Inner products of the rows with a vector, shape `(k,)`."""
        return _multiply(self.mixing, _sum_leaves(_inner, self.stored, vector))

    def gram(self, other):
        """Inner products with the m rows of another basis, shape `(k, m)`."""
        if not isinstance(other, Factored):
            return basis.map_rows(self.inner, other).T
        products = gram(self.stored, other.stored)
        return _multiply(_multiply(self.mixing, products), other.mixing.T)

    def combine(self, coefficients):
        """Combines the rows: `(k,)` gives a vector, `(m, k)` a basis in factors."""
        weights = _multiply(coefficients, self.mixing)
        if weights.ndim > 1:
            return dataclasses.replace(self, mixing=weights)
        return _map(lambda leaf: _combine(weights, leaf), self.stored)

    def mix(self, change):
        """The basis with `change(mixing)` as its mixing, and the same stored rows."""
        return dataclasses.replace(self, mixing=change(self.mixing))

    def orthonormal(self):
        """The same stored rows, mixed to an orthonormal basis of their span."""
        products = gram(self.stored, self.stored)
        return dataclasses.replace(self, mixing=orthonormalizing(products))


def orthonormalizing(gram, floor=None):
    """The lower triangular W `(..., k, k)` with W G Wᵀ = I for Gram matrices G.

    Row i of W is zero if row i depends on the rows before it: at most the share `floor`
    of its squared length is outside of their span. By default `floor` is the cube root
    of the rounding unit, so that products of the new rows are exact to a hundred units.
    """
    if floor is None:
        floor = jnp.finfo(gram.dtype).eps ** (1 / 3)
    size = gram.shape[-1]
    squares = jnp.diagonal(gram, axis1=-2, axis2=-1)
    identity = jnp.broadcast_to(jnp.eye(size, dtype=gram.dtype), gram.shape)
    index = jnp.arange(size)[:, None]

    # Cholesky's elimination of [G, I] leaves [Lᵀ, L⁻¹].
    def eliminate(pivot, both):
        row = jax.lax.dynamic_index_in_dim(both, pivot, -2)
        square, whole = (
            jax.lax.dynamic_index_in_dim(x, pivot, -1)
            for x in (row, squares[..., None, :])
        )
        found = square > floor * whole
        row *= jnp.where(found, jax.lax.rsqrt(jnp.where(found, square, 1)), 0)
        below = jnp.where(index > pivot, row[..., :size].swapaxes(-1, -2), 0)
        return jnp.where(index == pivot, row, both - below * row)

    both = jnp.concatenate([gram, identity], axis=-1)
    # Unrolled, an elimination is one kernel rather than an iteration of five.
    steps = jax.lax.fori_loop(0, size, eliminate, both, unroll=size <= 16)
    return steps[..., size:]


def zeros(like, num_rows: int, factors: int, axes=None) -> Factored:
    """A factored basis of `num_rows` zero rows, with `factors` terms per matrix.

    `matrices.sides` explains `axes`.
    """
    dtype = basis.working_dtype(like)

    def rows(leaf, found):
        shape = jnp.shape(leaf)
        if found is None:
            return jnp.zeros((num_rows, *shape), dtype)
        ends = (
            [shape[axis] for axis in found.without(side, len(shape))]
            for side in (found.columns, found.rows)
        )
        made = (jnp.zeros((num_rows, factors, *end), dtype) for end in ends)
        return Factors(*made, found)

    leaves, treedef = jax.tree.flatten(like)
    stored = map(rows, leaves, sides(like, factors, axes))
    return Factored(jnp.zeros((num_rows,) * 2, dtype), treedef.unflatten(stored))


def cut(rows, factors: int, axes=None):
    """A dense basis of k rows cut to `factors` terms per matrix: the best, by SVD.

    Returns the `Factored` basis, orthonormal, and the share `(k,)` of the squared
    length of each row that is kept; 0 for a row of zeros.
    """
    like = basis.like(rows)
    leaves, treedef = jax.tree.flatten(basis.widen(rows))
    stored = [
        x if found is None else _best(x, factors, found)
        for x, found in zip(leaves, sides(like, factors, axes))
    ]
    count = basis.num_rows(rows)
    identity = jnp.eye(count, dtype=basis.working_dtype(rows))
    found = Factored(identity, treedef.unflatten(stored))
    before, after = (basis.squared_norms(x) for x in (rows, found))
    kept = jnp.where(before > 0, after / jnp.where(before > 0, before, 1), 0)
    return found.orthonormal(), kept


def _best(rows, factors, sides) -> Factors:
    left, values, right = jnp.linalg.svd(sides.matrices(rows), full_matrices=False)
    kept = min(factors, values.shape[-1])
    scaled = values[..., :kept, None] * right[..., :kept, :]
    more = [(0, 0), (0, 0), (0, factors - kept), (0, 0)]
    ends = (jnp.pad(x, more) for x in (left[..., :kept].swapaxes(-1, -2), scaled))
    shape = rows.shape[1:]
    return Factors(
        *(
            sides.unfold(jnp.moveaxis(x, 2, 1), shape, kept)
            for x, kept in zip(ends, (sides.rows, sides.columns))
        ),
        sides,
    )


def gram(stored, other):
    """Inner products of stored rows, shape `(s, t)`."""
    return _sum_leaves(_gram, stored, other)


def is_factors(leaf) -> bool:
    """Whether a leaf of stored rows is a `Factors`."""
    return isinstance(leaf, Factors)


def _map(fn, stored, *others):
    return jax.tree.map(fn, stored, *others, is_leaf=is_factors)


def _sum_leaves(fn, stored, other):
    leaves = jax.tree.leaves(_map(fn, stored, other))
    return functools.reduce(jnp.add, leaves)


def _inner(leaf, x):
    return leaf.inner(x) if is_factors(leaf) else basis.inner(leaf, x)


def _gram(leaf, other):
    if is_factors(leaf):
        return leaf.gram(other)
    return other.gram(leaf).T if is_factors(other) else basis.gram(leaf, other)


def _combine(weights, leaf):
    return leaf.combine(weights) if is_factors(leaf) else basis.combine(weights, leaf)
