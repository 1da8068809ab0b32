r"""Rows of a factored basis moved to new places, and cut to their low rank again.

Each new row is a *target*, a combination Σ_w β_w y_w + Σ_i γ_i v_i of dense vectors y_w
and stored rows v_i. Its matrices X have a higher rank and are never formed. One power
step from the larger factor B of a row nearby cuts them:

  A ← orth(X B),  B ← Xᵀ A.

Where X is A Bᵀ of the row nearby and a small change, that is as good as a singular
value decomposition, to first order.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd.linalg import basis, branches, units
from bulk_sgd.linalg.factors import Factors, einsum, is_factors, orthonormalizing


class Frame(NamedTuple):
    """What targets are made of: w dense vectors and s stored rows.

    Attributes:
      vectors: a dense basis of w rows.
      stored: as in `factors.Factored`.
      halves: for each leaf of `stored` its `halves` with the vectors, None if dense.
      gram: `(w + s, w + s)`, inner products of all of them, the vectors first.
      unit: of the vectors in `halves` and `gram`.
    """

    vectors: Any
    stored: Any
    halves: list
    gram: jax.Array
    unit: jax.Array


def frame(vectors, stored, products, beside=()) -> Frame:
    """A `Frame`, where `products` are the inner products of the stored rows.

    Numbers of the size of the vectors, `beside`, are to have squares in its unit too.
    """
    halves, inner = _products(vectors, stored)
    own = basis.gram(vectors, vectors)
    one = jnp.ones((), products.dtype)
    size = units.largest((units.root(jnp.diag(own)), beside)).astype(one.dtype)
    count = basis.size(vectors)
    right = units.hold(size**2, count)

    def in_units():
        unit = units.for_squares(size**2, count)
        scaled = basis.scale(1 / unit, vectors)
        return basis.gram(scaled, scaled), unit

    own, unit = branches.cond(~right, in_units, lambda: (own, one))
    inner, halves = jax.tree.map(lambda x: x / unit, (inner, halves))
    whole = jnp.block([[own, inner], [inner.T, products]])
    return Frame(vectors, stored, halves, whole, unit)


def _products(vectors, stored):
    """The `halves`, and the inner products of the vectors with the rows."""
    leaves, treedef = jax.tree.flatten(stored, is_factors)
    halves, inner = [], []
    for rows, leaf in zip(treedef.flatten_up_to(vectors), leaves):
        half = leaf.halves(rows) if is_factors(leaf) else None
        halves.append(half)
        inner.append(basis.gram(rows, leaf) if half is None else leaf.inner_of(half))
    return halves, functools.reduce(jnp.add, inner)


def expand(stored):
    """Stored rows as dense ones."""

    def rows(leaf):
        if not is_factors(leaf):
            return leaf
        (left, right), s, q = leaf.axes, leaf.ndim, leaf.ndim + 1
        ends = leaf.left, [s, q, *left], leaf.right, [s, q, *right]
        return einsum(*ends, [s, *range(leaf.ndim)])

    return jax.tree.map(rows, stored, is_leaf=is_factors)


def move(frame: Frame, weights, starts):
    """Stored rows of length one in the direction of the targets, cut.

    Target i has the weights `(w + s,)` in row i of `weights`, and its power step begins
    at the factors of stored row `starts[i]`. Returns the rows, and the squared lengths
    of the cut targets; a target of length zero is a row of zeros.
    """
    count = basis.num_rows(frame.vectors)
    weights = weights[:, :count], weights[:, count:]
    on_vectors = weights[0] / frame.unit, weights[1]
    leaves, treedef = jax.tree.flatten(frame.stored, is_factors)
    vectors = treedef.flatten_up_to(frame.vectors)
    places = [i for i, leaf in enumerate(leaves) if is_factors(leaf)]
    smaller = [_smaller(leaves[i], frame.halves[i], *weights, starts) for i in places]
    smaller = dict(zip(places, _orthonormal([leaves[i] for i in places], smaller)))
    moved = [
        _larger(leaf, rows, smaller[i][0], *on_vectors)
        if i in smaller
        else basis.combine(on_vectors[0], rows) + basis.combine(weights[1], leaf)
        for i, (leaf, rows) in enumerate(zip(leaves, vectors))
    ]
    squares = functools.reduce(
        jnp.add, (jnp.sum(x**2, axis=range(1, x.ndim)) for x in moved)
    )
    scales = jax.lax.rsqrt(jnp.where(squares > 0, squares, 1))
    moved = basis.scale_rows(scales, moved)
    for i, (ends, found) in smaller.items():
        moved[i] = _filled(leaves[i], ends, moved[i], found, starts)
    return treedef.unflatten(moved), squares


def _smaller(leaf: Factors, halves, betas, gammas, starts):
    """X B for each target, `(c, r, ...)`."""
    (smaller, near), (larger, far) = leaf.ends
    c, w, q = range(leaf.ndim, leaf.ndim + 3)
    ends = betas, [c, w], halves[:, starts], [w, c, q, *near], [c, q, *near]
    product = einsum(*ends)
    return product + _through(gammas, larger[starts], larger, far, smaller, near)


def _larger(leaf: Factors, rows, ends, betas, gammas):
    """Xᵀ A for each target, `(c, r, ...)`."""
    (smaller, near), (larger, far) = leaf.ends
    c, w, q = range(leaf.ndim, leaf.ndim + 3)
    weighted = einsum(betas, [c, w], ends, [c, q, *near], [c, w, q, *near])
    product = leaf.times(rows, [w], weighted, [c, w, q, *near], [c, q, *far])
    return product + _through(gammas, ends, smaller, near, larger, far)


def _through(gammas, start, via, axes, to, others):
    """Σ_i γ_i `to`_i `via`_iᵀ `start` for each target, over the stored rows i."""
    n = max(*axes, *others) + 1
    c, q, s, p = range(n, n + 4)
    both = [c, q, s, p, *(axis for axis in axes if axis in others)]
    cross = einsum(start, [c, q, *axes], via, [s, p, *axes], both)
    cross *= jnp.expand_dims(gammas, (1, *range(3, cross.ndim)))
    return einsum(cross, both, to, [s, p, *others], [c, q, *others])


def _filled(leaf: Factors, smaller, larger, found, starts) -> Factors:
    """The new factors; a larger one whose smaller one is zero stays as it was.

    The next step begins with it: the rank of a matrix may grow again.
    """
    old, far = leaf.ends[1]
    _, matrices, c, q, _ = _names(leaf)
    missing = 1 - found, [c, *matrices, q], old[starts], [c, q, *far], [c, q, *far]
    return leaf.with_ends(smaller, larger + einsum(*missing))


def _orthonormal(leaves, blocks):
    """Orthonormal columns of the matrices in each block, in their order.

    Returns a pair for each block: the columns, `(c, r, ...)` as before, and which were
    found, `(c, ..., r)`, 1 or 0. A column that depends on those before it is zero.
    """
    if not blocks:
        return []
    floor = 100 * jnp.finfo(blocks[0].dtype).eps

    def once(_, known):
        blocks, _ = known
        grams = [_gram(leaf, block) for leaf, block in zip(leaves, blocks)]
        flat = [x.reshape(-1, *x.shape[-2:]) for x in grams]
        inverse = orthonormalizing(jnp.concatenate(flat), floor)
        sizes = [len(x) for x in flat]
        inverses = jnp.split(inverse, list(itertools.accumulate(sizes))[:-1])
        inverses = [x.reshape(y.shape) for x, y in zip(inverses, grams)]
        blocks = [_mix(*each) for each in zip(leaves, inverses, blocks)]
        found = [jnp.diagonal(x, axis1=-2, axis2=-1) > 0 for x in inverses]
        return blocks, [x.astype(floor.dtype) for x in found]

    # A loop makes one program of both passes.
    begin = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(once, 0, (blocks, None))
    )
    passes = min(blocks[0].shape[1], 2)  # twice is enough, once for one column
    return list(zip(*jax.lax.fori_loop(0, passes, once, (blocks, begin[1]))))


def _gram(leaf: Factors, block):
    near, matrices, c, q, p = _names(leaf)
    ends = block, [c, q, *near], block, [c, p, *near]
    return einsum(*ends, [c, *matrices, q, p])


def _mix(leaf: Factors, mixing, block):
    near, matrices, c, q, p = _names(leaf)
    ends = mixing, [c, *matrices, q, p], block, [c, p, *near]
    return einsum(*ends, [c, q, *near])


def _names(leaf: Factors):
    """The axes of the smaller factor, those that number matrices, and three more."""
    (_, near), (_, far) = leaf.ends
    matrices = [axis for axis in near if axis in far]
    return near, matrices, *range(leaf.ndim, leaf.ndim + 3)
