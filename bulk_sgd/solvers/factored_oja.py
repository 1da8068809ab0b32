"""One step of Oja's rule on a basis in factors, for the solver `streaming`.

It takes the same step as `oja` without forming a new vector. Every new vector is a
combination of the w products of the step and the k stored rows, and only its weights
are kept. The inner products of products and rows give the lengths and angles of such
vectors. `recut` then turns the weights into factors, in one power step.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd.curvature import operators
from bulk_sgd.linalg import basis, branches, factors, recut
from bulk_sgd.linalg import groups as joining
from bulk_sgd.solvers import oja, rotation

_multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class FactoredStreamingState(NamedTuple):
    """State of `streaming` with factors.

    V = [v_1 … v_k] are the stored rows, P is the projector onto their span, and H_b the
    Hessian of the batch.

    Attributes:
      count: int32, calls so far.
      quotients: `(k, k)`, running average of Vᵀ H_b V.
      noise: `(k,)`, running root mean square of ‖H_b v_i − P H_b v_i‖.
      gram: `(k, k)`, Vᵀ V. Cut to a low rank, the v_i are not quite orthogonal.
      lost: `(k,)`, running average of the share of ‖H_b v_i‖² that a cut takes, from 0
        to 1.
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


class _Call(NamedTuple):
    """The inputs of one call of the solver."""

    rows: factors.Factored
    state: FactoredStreamingState
    window: oja.Window
    partner: jax.Array  # the row to rotate with
    missing: jax.Array  # (w,) bools, which rows of the window are zero
    acts: Any

    @property
    def places(self):
        """The rows that change: those of the window and the partner."""
        start, width, *_ = self.window
        places = jnp.append(start + jnp.arange(width), self.partner)
        return places[: min(width + 1, len(self.state.lost))]


def _move(matvec, rows, state, window: oja.Window, updates, key, acts):
    start, width, turning, _ = window
    groups = joining.find(rows)
    rows = groups.join(rows)
    partner = rotation.partner(
        state.quotients, turning, window.outside(len(state.lost))
    )
    squares = jax.lax.dynamic_slice_in_dim(jnp.diag(state.gram), start, width)
    call = _Call(rows, state, window, partner, squares == 0, acts)
    multiply = groups.around(operators.linearize(matvec))

    def vectors(seeding, own):
        def fresh():
            noise = groups.join(oja.noise(width, updates, key))
            return oja.fresh(call.missing, own, rows, groups.join(updates), noise)

        return jax.lax.cond(seeding, fresh, lambda: basis.map_rows(multiply, own))

    def turn(index, known):
        return _turn(call, vectors, index == 0, *known[:3])

    # If rows are missing, a first turn fills them. In a loop both turns are the same
    # program, which halves the time to compile.
    turns = 1 + branches.any_lane(jnp.any(call.missing)).astype(jnp.int32)
    begin = _begun(call, groups, key), rows.mixing, state, jnp.zeros((), bool)
    stored, mixing, after, usable = jax.lax.fori_loop(2 - turns, 2, turn, begin)
    return factors.Factored(mixing, groups.split(stored)), after, usable


def _turn(call: _Call, vectors, seeding, stored, mixing, state):
    """Moves the rows of the window by their products; if `seeding`, fills missing ones.

    `vectors(seeding, own)` returns the products with the rows `own`, or the new rows.
    """
    start, width, _, weight = call.window
    places, rank = call.places, len(state.lost)
    own = recut.expand(basis.take_rows(stored, start, width))
    vectors = vectors(seeding, own)
    old = basis.scale(jnp.where(seeding, 0, 1), (state.quotients, state.noise))
    frame = recut.frame(vectors, stored, state.gram, old)
    scaled = state.quotients / frame.unit, (state.noise / frame.unit) ** 2

    inside, squares = frame.gram[:width, width:], jnp.diag(frame.gram)[:width]
    beyond = squares - jnp.sum(_multiply(inside, mixing.T) ** 2, axis=1)
    averages, quotients, noise = oja.average(inside, beyond, call.window, *scaled)
    weights = _mixtures(frame.gram, mixing, scaled[0], call.window)
    quotients, noise = oja.of_vectors(weights, call.window, quotients, noise)
    # What mixes like squares: noise, old losses, and the weights of the new ones.
    fresh = weight * (1 - call.window.outside(rank))
    variances = jnp.stack([noise, (1 - fresh) * state.lost, fresh], axis=1)
    weights, starts, quotients, variances = _rotated(
        weights, call.window, call.partner, quotients, variances
    )
    new_rows = jnp.eye(len(places), width + rank, dtype=weights.dtype), places
    weights, starts = basis.where(seeding, new_rows, (weights, starts))
    moved, kept = recut.move(frame, weights, starts)
    usable = call.acts & jnp.isfinite(kept).all()
    usable &= jnp.isfinite(averages).all() & jnp.isfinite(beyond).all()

    usable = jnp.where(seeding, jnp.any(call.missing), usable)
    missing = jnp.append(call.missing, False)[: len(places)]
    before = jax.tree.map(lambda x: x[places], call.rows.stored)
    placed = basis.where_rows(usable & (missing | ~seeding), moved, before)
    stored = _replaced(stored, places, placed)
    products = _bordered(state.gram, places, factors.gram(placed, stored))
    variance, lost, fresh = variances.T
    quotients, noise = frame.unit * quotients, frame.unit * jnp.sqrt(variance)
    losses = _losses(weights[:, :width], squares, kept)
    lost += fresh * _replaced(jnp.zeros_like(lost), places, losses)
    after = quotients, noise, products, lost
    after = basis.where(seeding, state._replace(gram=products)[1:], after)
    after = FactoredStreamingState(state.count, *after)
    found = factors.orthonormalizing(products), after
    mixing, after = basis.where(usable, found, (call.rows.mixing, call.state))
    return stored, mixing, after, usable & ~seeding


def _losses(weights, squares, kept):
    """The share of the products in each target that its cut takes.

    Targets have length one; their parts along stored rows were cut before.
    """
    whole = _multiply(weights**2, squares)
    lost = (1 - kept) / jnp.where(whole > 0, whole, 1)
    return jnp.where(kept > 0, jnp.clip(lost, 0, 1), 0)


def _begun(call: _Call, groups, key):
    """The stored rows; missing ones get random factors, so power steps can begin."""
    stored, width = call.rows.stored, call.window.width

    def fill():
        own = basis.take_rows(stored, call.window.start, width)
        # Drawn leaf by leaf: the numbers do not depend on what is joined.
        like = jax.eval_shape(groups.split, own)
        begin = basis.random_normal(jax.random.fold_in(key, 1), like)
        begin = groups.join(begin)
        begin = basis.where_rows(call.missing, begin, own)
        filled = _replaced(stored, call.places[:width], begin)
        return basis.where(branches.own_lane(jnp.any(call.missing)), filled, stored)

    return branches.cond(jnp.any(call.missing), fill, lambda: stored)


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
