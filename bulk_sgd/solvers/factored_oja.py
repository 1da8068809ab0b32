"""One step of Oja's rule on a basis in factors, for the solver `streaming`.

The frames turn first, towards the new products. Then `oja` takes its step on the
coordinates in these frames, as on a dense basis.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd.curvature import operators
from bulk_sgd.linalg import basis, branches, factors, frames, packing, units
from bulk_sgd.solvers import oja


class FactoredStreamingState(NamedTuple):
    """State of `streaming` with factors.

    The basis is V = [v_1 … v_k], and H_b is the Hessian of the batch.

    Attributes:
      count: int32, calls so far.
      quotients: `(k, k)`, running average of Vᵀ H_b V.
      noise: `(k,)`, running root mean square of ‖H_b v_i − V Vᵀ H_b v_i‖.
      lost: `(k,)`, running average of the share of ‖H_b v_i‖² that is outside of the
        frames after they have turned towards this product, from 0 to 1.
    """

    count: jax.Array
    quotients: jax.Array
    noise: jax.Array
    lost: jax.Array


def init(rank: int, dtype) -> FactoredStreamingState:
    """The state before the first call."""
    # Each field has a buffer of its own: a step may be given them to write into.
    square, row = (functools.partial(jnp.zeros, x, dtype) for x in ((rank, rank), rank))
    return FactoredStreamingState(jnp.zeros((), jnp.int32), square(), row(), row())


def step(matvec, rows, state: FactoredStreamingState, window, updates, key, acts):
    """Returns the moved `rows`, the new state, and whether both are usable.

    `window` is an `oja.Window`; if `acts` does not hold, nothing changes.
    """

    def act():
        moved, after, usable = _move(matvec, rows, state, window, updates, key, acts)
        return *basis.where(usable, (moved, after), (rows, state)), usable

    return branches.cond(acts, act, lambda: (rows, state, jnp.zeros((), bool)))


def _move(matvec, rows, state, window: oja.Window, updates, key, acts):
    start, width, _, weight = window
    held, like = rows.frames, basis.like(rows.coordinates)
    form = packing.choose(like, operators.spans_devices(matvec))
    pack = functools.partial(basis.map_rows, form.pack)
    unpack = functools.partial(basis.map_rows, form.unpack)
    known = pack(rows.coordinates)
    own = basis.take_rows(known, start, width)
    draw = lambda key: form.pack(frames.random_normal(held, like, key))
    update = form.pack(frames.compress(held, basis.widen(updates)))
    own = oja.seed(own, known, update, key, draw, basis.size(like))
    vectors = unpack(own)
    lift = functools.partial(frames.lift, held)
    products = oja.multiply(matvec, basis.map_rows(lift, vectors))
    lengths = basis.norms(products)

    inside = basis.map_rows(lambda x: form.pack(frames.compress(held, x)), products)
    mixed, scales = _mixtures(inside, lengths, own, state, window)
    mixed = unpack(mixed)
    coordinates = _put(rows.coordinates, start, mixed)
    turned = frames.turn(held, coordinates, products, mixed, scales)
    coordinates = _put(rows.coordinates, start, vectors)
    known = pack(frames.translate(held, turned, coordinates))
    # Turned frames leave a little of the old rows outside.
    known = basis.combine(frames.orthonormalizing(basis.gram(known, known)), known)

    own = basis.take_rows(known, start, width)
    inside = basis.map_rows(lambda x: form.pack(frames.compress(turned, x)), products)
    share = _share_outside(inside, lengths)
    beyond = lengths * jnp.sqrt(share)
    old = jax.lax.dynamic_slice(state.lost, (start,), (width,))
    lost = old + weight * (share - old)
    lost = jax.lax.dynamic_update_slice(state.lost, lost, (start,))
    averages = state.quotients, state.noise
    moved = oja.move(inside, known, own, window, *averages, acts, beyond, lost)
    known = _put(known, start, moved.rows)
    if width < len(state.noise):
        other = jax.tree.map(lambda x: x[None], moved.other)
        known = _put(known, moved.partner, other)
    after = state._replace(
        quotients=moved.quotients, noise=moved.noise, lost=moved.beside
    )
    return factors.Factored(unpack(known), turned), after, moved.usable


def _put(rows, start, new):
    """The rows with those from `start` on replaced; small, so a copy costs little."""
    return jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, 0), rows, new
    )


def _mixtures(inside, lengths, own, state, window: oja.Window):
    """The coordinates of Oja's mixtures, and the share of each product in its mixture.

    Each mixture is scaled to length one, its part outside of the frames included.
    `inside` are the coordinates of the products, and `own` those of their vectors.
    """
    start, width, _, weight = window
    unit = units.power_of_two(units.largest((lengths, state.quotients)))
    lengths = lengths / unit
    values = jax.lax.dynamic_slice(jnp.diag(state.quotients), (start,), (width,))
    stays = oja.stays(values / unit, lengths, weight)
    inside = basis.scale(1 / unit, inside)
    mixed = basis.scale_rows(stays, own)
    mixed = jax.tree.map(lambda x, y: x + weight * y, mixed, inside)
    beyond = lengths**2 * _share_outside(inside, lengths)
    squares = basis.squared_norms(mixed) + weight**2 * beyond
    inverse = jnp.where(squares > 0, jax.lax.rsqrt(squares), 0)
    return basis.scale_rows(inverse, mixed), weight * inverse / unit


def _share_outside(inside, lengths):
    """The share of the squared lengths that coordinates leave out, from 0 to 1."""
    safe = jnp.where(lengths > 0, lengths, 1)
    share = 1 - (basis.norms(inside) / safe) ** 2
    return jnp.where(lengths > 0, jnp.clip(share, 0, 1), 0)
