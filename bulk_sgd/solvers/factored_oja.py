"""One step of Oja's rule on a basis in factors, for the solver `streaming`.

It takes the same step as `oja` without forming a new vector. Every new vector is a
combination of the w products of the step and the k stored rows, and only its weights
are kept. The inner products of products and rows give the lengths and angles of such
vectors. `recut` then turns the weights into factors, in one power step.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd.curvature import operators
from bulk_sgd.linalg import basis, branches, factors, recut
from bulk_sgd.solvers import oja, rotation

_multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class FactoredStreamingState(NamedTuple):
    """State of `streaming` in factors, with the stored rows V = [v_1 … v_k].

    Attributes:
      count: int32, calls so far.
      quotients: `(k, k)`, running average of Vᵀ H_b V.
      noise: `(k,)`, running root mean square of the length of H_b v_i outside V.
      gram: `(k, k)`, Vᵀ V. Cut to a low rank, vectors are not quite orthogonal.
      lost: `(k,)`, running average of the share of the squared length of H_b v_i that
        a cut takes, from 0 to 1.
    """

    count: jax.Array
    quotients: jax.Array
    noise: jax.Array
    gram: jax.Array
    lost: jax.Array


def init(rank: int, dtype) -> FactoredStreamingState:
    """The state before the first call."""
    # Each field has a buffer of its own: a step may be given them to write into.
    square, row = (functools.partial(jnp.zeros, x, dtype) for x in ((rank, rank), rank))
    return FactoredStreamingState(
        jnp.zeros((), jnp.int32), square(), row(), square(), row()
    )


def step(matvec, rows, state: FactoredStreamingState, window, updates, key, acts):
    """Returns the moved `rows`, the new state, and whether both are usable.

    `window` is an `oja.Window`; if `acts` does not hold, nothing changes.
    """

    def act():
        return _move(matvec, rows, state, window, updates, key, acts)

    return branches.cond(acts, act, lambda: (rows, state, jnp.zeros((), bool)))


def _move(matvec, rows, state, window: oja.Window, updates, key, acts):
    start, width, turning, weight = window
    rank = len(state.lost)
    partner = rotation.partner(state.quotients, turning, window.outside(rank))
    # The rows that change: those of the window, and the one to rotate with.
    places = jnp.append(start + jnp.arange(width), partner)[: min(width + 1, rank)]
    before = jax.tree.map(lambda x: x[places], rows.stored)
    stored, products, mixing = _seeded(rows, state.gram, window, updates, key)
    own = basis.take_rows(stored, start, width)
    vectors = basis.map_rows(operators.linearize(matvec), recut.expand(own))
    old = state.quotients, state.noise
    frame = recut.frame(vectors, stored, products, old)
    scaled = state.quotients / frame.unit, (state.noise / frame.unit) ** 2

    inside, squares = frame.gram[:width, width:], jnp.diag(frame.gram)[:width]
    beyond = squares - jnp.sum(_multiply(inside, mixing.T) ** 2, axis=1)
    averages, quotients, noise = oja.average(inside, beyond, window, *scaled)
    weights = _mixtures(frame.gram, mixing, scaled[0], window)
    quotients, noise = oja.of_vectors(weights, window, quotients, noise)
    # What mixes like squares: noise, old losses, and the weights of the new ones.
    fresh = weight * (1 - window.outside(rank))
    variances = jnp.stack([noise, (1 - fresh) * state.lost, fresh], axis=1)
    weights, starts, quotients, variances = _rotated(
        weights, window, partner, quotients, variances
    )
    moved, kept = recut.move(frame, weights, starts)
    usable = acts & jnp.isfinite(kept).all()
    usable &= jnp.isfinite(averages).all() & jnp.isfinite(beyond).all()

    stored = _replaced(stored, places, basis.where(usable, moved, before))
    products = _bordered(products, places, factors.gram(moved, stored))
    variance, lost, fresh = variances.T
    quotients, noise = frame.unit * quotients, frame.unit * jnp.sqrt(variance)
    losses = _losses(weights[:, :width], squares, kept)
    lost += fresh * _replaced(jnp.zeros_like(lost), places, losses)
    after = FactoredStreamingState(state.count, quotients, noise, products, lost)
    mixing = factors.orthonormalizing(products)
    mixing, after = basis.where(usable, (mixing, after), (rows.mixing, state))
    return factors.Factored(mixing, stored), after, usable


def _losses(weights, squares, kept):
    """The share of the products in each target that its cut takes.

    Targets have length one; their parts along stored rows were cut before.
    """
    whole = _multiply(weights**2, squares)
    lost = (1 - kept) / jnp.where(whole > 0, whole, 1)
    return jnp.where(kept > 0, jnp.clip(lost, 0, 1), 0)


def _seeded(rows, products, window: oja.Window, updates, key):
    """The stored rows with none of the window missing, their Gram matrix, a mixing."""
    start, width = window.start, window.width
    own = basis.take_rows(rows.stored, start, width)
    squares = jax.lax.dynamic_slice_in_dim(jnp.diag(products), start, width)
    missing = squares == 0

    def fill():
        dense = oja.fresh(missing, recut.expand(own), rows, updates, key)
        # Its power step begins anywhere.
        begin = basis.random_normal(jax.random.fold_in(key, 1), own)
        frame = recut.frame(dense, begin, jnp.zeros((width, width), products.dtype))
        weights = jnp.eye(width, 2 * width, dtype=products.dtype)
        cut, _ = recut.move(frame, weights, jnp.arange(width))
        filled = basis.where_rows(missing, cut, own)
        places = start + jnp.arange(width)
        stored = _replaced(rows.stored, places, filled)
        new = _bordered(products, places, factors.gram(filled, stored))
        new = stored, new, factors.orthonormalizing(new)
        return basis.where(branches.own_lane(missing.any()), new, old)

    old = rows.stored, products, rows.mixing
    return branches.cond(missing.any(), fill, lambda: old)


def _mixtures(products, mixing, quotients, window: oja.Window):
    """Weights `(w, w + k)` of Oja's mixtures, apart from the rows and orthonormal."""
    start, width, _, weight = window
    lengths = jnp.sqrt(jnp.diag(products)[:width])
    values = jax.lax.dynamic_slice_in_dim(jnp.diag(quotients), start, width)
    stays = jnp.diag(oja.stays(values, lengths, weight))
    others = jnp.zeros((width, len(quotients)), products.dtype)
    others = jax.lax.dynamic_update_slice_in_dim(others, stays, start, 1)
    mixed = jnp.append(weight * jnp.eye(width, dtype=products.dtype), others, axis=1)
    along = _multiply(mixed, products[:, width:])
    along = _multiply(along, _inverse_outside(mixing, window))
    mixed -= jnp.pad(along, [(0, 0), (width, 0)])
    squares = _multiply(_multiply(mixed, products), mixed.T)
    return _multiply(factors.orthonormalizing(squares), mixed)


def _inverse_outside(mixing, window: oja.Window):
    """The inverse of the Gram matrix of the rows outside of the window, else zeros.

    It is a Schur complement in the inverse for all rows. Without it, what two rows have
    in common would be removed twice.
    """
    start, width = window.start, window.width
    whole = _multiply(mixing.T, mixing)
    own = jax.lax.dynamic_slice_in_dim(whole, start, width)
    core = jax.lax.dynamic_slice_in_dim(own, start, width, axis=1)
    half = _multiply(factors.orthonormalizing(core), own)
    outside = window.outside(len(mixing))
    return jnp.where(outside, whole - _multiply(half.T, half), 0)


def _rotated(weights, window: oja.Window, partner, quotients, noise):
    """The rotated weights of the window, and of the row that one was rotated with.

    Returns them with the stored rows that each of their power steps begins with, and
    the rotated averages.
    """
    start, width, turning, _ = window
    rank = len(noise)
    if width > 1:
        weights, quotients, noise = rotation.diagonalize(
            weights, quotients, noise, start
        )
    starts = start + jnp.argmax(jnp.abs(weights[:, :width]), axis=1)
    if width == rank:
        return weights, starts, quotients, noise
    place = turning - start
    other = (jnp.arange(width + rank) == width + partner).astype(weights.dtype)
    first, other, quotients, noise = rotation.jacobi(
        weights[place], other, quotients, noise, turning, partner
    )
    turned = jnp.abs(other[width + partner]) < 0.5**0.5
    theirs = jnp.where(turned, starts[place], partner)
    starts = starts.at[place].set(jnp.where(turned, partner, starts[place]))
    weights = jnp.append(basis.set_row(weights, place, first), other[None], axis=0)
    return weights, jnp.append(starts, theirs), quotients, noise


def _replaced(stored, places, rows):
    """The stored rows with those at the indices `places` replaced.

    By a select: XLA would copy a basis before it writes into it.
    """
    index = jnp.arange(basis.num_rows(stored))
    which = index[:, None] == places
    source = jnp.argmax(which, axis=1)
    new = jax.tree.map(lambda x: x[source], rows)
    return basis.where_rows(which.any(axis=1), new, stored)


def _bordered(matrix, places, rows):
    """A symmetric matrix with the rows and columns at `places` replaced."""
    matrix = _replaced(matrix, places, rows)
    return _replaced(matrix.T, places, rows).T
