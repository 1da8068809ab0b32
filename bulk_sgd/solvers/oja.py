"""One step of Oja's rule on a window of a basis, for the solver `streaming`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd.curvature import operators
from bulk_sgd.linalg import basis, branches, units
from bulk_sgd.linalg.orthogonalization import orthonormal
from bulk_sgd.solvers import rotation

# The least that a vector keeps of itself, in lengths of its product: enough to leave it
# orthogonal to 1e-5 where the rest is rounding, and little to the first sweeps.
_LEAST = 0.01


def stays(values, lengths, weight):
    """What vectors keep of themselves, by their quotients and the ‖H_b v_i‖."""
    # The magnitude: with a negative quotient as it stands the vector would reverse at
    # every step, away from all directions of larger eigenvalues.
    kept = jnp.abs(values) - weight * values
    # Where H has fewer directions than V, a product lies all along other rows, and only
    # rounding remains of it. Where H has none at all, no row is found.
    return jnp.maximum(kept, _LEAST * weight * lengths)


class Window(NamedTuple):
    """The rows that a call multiplies."""

    start: jax.Array  # index of the first
    width: int  # their number w, static
    turning: jax.Array  # index of the one to be rotated with a row outside
    weight: jax.Array  # the gain ρ

    def outside(self, rank):
        """`(rank,)` bools, which rows of the basis are not in the window."""
        index = jnp.arange(rank)
        return (index < self.start) | (index >= self.start + self.width)


class _Products(NamedTuple):
    """The products H_b v_i with the vectors v_i in the window, and Oja's mixtures.

    The products themselves are not stored; what is made of them is in their unit.
    """

    mixed: Any  # stays_i v_i + ρ H_b v_i
    stays: jax.Array  # (w,), what each vector keeps of itself
    overlap: jax.Array  # (w, k), inner products of the mixture with all rows
    inside: jax.Array  # (w, k), inner products of the products with all rows
    squares: jax.Array  # (w,), squared norms of the products
    beyond: jax.Array  # (w,), squared norms of what the rows could not hold
    unit: jax.Array  # near the largest of the products, quotients and noise

    @property
    def outside(self):
        """`(w,)`, the squared norms of their parts outside of the basis."""
        return self.squares + self.beyond - jnp.sum(self.inside**2, axis=1)


class Moved(NamedTuple):
    """What a call changes; the averages are the old ones if it is not usable."""

    rows: Any  # the new rows of the window
    other: Any  # the row outside of the window that one of them was rotated with
    partner: jax.Array  # the index of that row
    usable: jax.Array  # whether all is finite and the solver acts at this call
    quotients: jax.Array  # (k, k)
    noise: jax.Array  # (k,)
    beside: jax.Array | None  # (k,), what was given to turn with the vectors


def multiply(matvec, rows):
    """The products of a matvec with dense rows."""
    return basis.map_rows(operators.linearize(matvec), rows)


def move(
    vectors, rows, own, window: Window, quotients, noise, acts, beyond=None, beside=None
) -> Moved:
    """Oja's rule on the rows in the window, and a rotation towards the eigenvectors.

    `own` holds the rows of the window, seeded, and `vectors` their products; `acts`
    says whether to use the result; `StreamingState` explains `quotients` and `noise`.
    `beyond` `(w,)` are the lengths of what `vectors` leaves out of the products, and
    `beside` `(k,)` are numbers of the vectors that mix like their squares.
    """
    old, rank = (quotients, noise), len(quotients)
    partner = rotation.partner(quotients, window.turning, window.outside(rank))
    products = _mixed(vectors, rows, own, *old, window, beyond)
    scaled = quotients / products.unit, (noise / products.unit) ** 2
    found = products.inside, products.outside
    averages, quotients, noise = average(*found, window, *scaled)
    turned = orthonormal(_apart(rows, products, window))
    noise = jnp.stack([noise] if beside is None else [noise, beside], axis=1)
    quotients, noise = of_vectors(turned, window, quotients, noise)

    other = basis.row(rows, partner)
    if window.width > 1:
        turned, quotients, noise = rotation.diagonalize(
            turned, quotients, noise, window.start
        )
    if window.width < rank:
        place = window.turning - window.start
        first, other, quotients, noise = rotation.jacobi(
            basis.row(turned, place), other, quotients, noise, window.turning, partner
        )
        turned = basis.set_row(turned, place, first)
    finite = jnp.all(jnp.isfinite(averages)) & jnp.all(jnp.isfinite(products.outside))
    # Both the rows and the other one decide, so that XLA reads them before it writes
    # either one and need not copy the basis between the writes.
    lengths = basis.squared_norms(turned)
    finite &= jnp.all((lengths > 0.5) | (lengths == 0))
    finite &= jnp.isfinite(basis.dot(other, other))
    usable = finite & acts
    averages = products.unit * quotients, products.unit * jnp.sqrt(noise[:, 0])
    averages = basis.where(usable, averages, old)
    beside = None if beside is None else noise[:, 1]
    return Moved(turned, other, partner, usable, *averages, beside)


def _mixed(vectors, rows, own, quotients, noise, window: Window, beyond) -> _Products:
    start, width, _, weight = window
    lengths = basis.norms(vectors)
    beyond = jnp.zeros_like(lengths) if beyond is None else beyond
    unit = units.power_of_two(units.largest((lengths, beyond, quotients, noise)))
    squares, beyond = ((x / unit) ** 2 for x in (lengths, beyond))
    values = jax.lax.dynamic_slice(jnp.diag(quotients) / unit, (start,), (width,))
    keep = stays(values, jnp.sqrt(squares + beyond), weight)
    kept = basis.scale_rows(keep, own)
    mixed = jax.tree.map(lambda x, y: x + weight * (y / unit), kept, vectors)
    # Of the mixture, not of the products alone: what rounding left of the vectors along
    # other rows is removed as well, or it would grow where a quotient is negative.
    overlap = basis.gram(mixed, own)
    if width < basis.num_rows(rows):
        # `rows` does not hold a row that was just seeded.
        at = jnp.zeros_like(start), start
        overlap = jax.lax.dynamic_update_slice(basis.gram(mixed, rows), overlap, at)
    identity = jnp.arange(overlap.shape[1]) == start + jnp.arange(width)[:, None]
    found = basis.squared_norms(own) > 0
    itself = jnp.where(identity, (keep * found)[:, None], 0)
    inside = (overlap - itself) / weight
    return _Products(mixed, keep, overlap, inside, squares, beyond, unit)


def average(inside, outside, window: Window, quotients, noise):
    """The new quotients: their rows `(w, k)` in the window, and all; the new noise."""
    start, width, _, weight = window
    zero, rank = jnp.zeros_like(start), len(quotients)
    old = jax.lax.dynamic_slice(quotients, (start, zero), (width, rank))
    new = old + weight * (inside - old)
    quotients = jax.lax.dynamic_update_slice(quotients, new, (start, zero))
    quotients = jax.lax.dynamic_update_slice(quotients, new.T, (zero, start))
    variance = jax.lax.dynamic_slice(noise, (start,), (width,))
    variance = variance + weight * (jnp.maximum(outside, 0) - variance)
    noise = jax.lax.dynamic_update_slice(noise, variance, (start,))
    return new, quotients, noise


def of_vectors(rows, window: Window, quotients, noise):
    """The averages, zero for rows of zeros: no rotation may mix these with vectors."""
    found = basis.squared_norms(rows) > 0
    others = jnp.ones(len(noise), bool)
    found = jax.lax.dynamic_update_slice(others, found, (window.start,))
    both = found[:, None] & found
    return jnp.where(both, quotients, 0), jnp.where(found[:, None], noise, 0)


def _apart(rows, products: _Products, window: Window):
    """The mixtures without their parts along the rows outside of the window."""
    mixed, stays, overlap, inside, squares, _, _ = products
    start, width, _, weight = window
    if width == basis.num_rows(rows):
        return mixed
    others = window.outside(basis.num_rows(rows))
    overlap = jnp.where(others, overlap, 0)
    mixed = basis.subtract(mixed, basis.combine(overlap, rows))
    # Little is removed as a rule, and the inner products are at hand: one pass is as
    # good as two. Where less is left than was removed, rounding has grown.
    at = jnp.zeros_like(start), start
    forms = jnp.diag(jax.lax.dynamic_slice(inside, at, (width, width)))
    before = stays**2 + weight * (2 * stays * forms + weight * squares)
    short = 2 * jnp.sum(overlap**2, axis=1) > before

    def again(_, mixed):
        part = jnp.where(short[:, None] & others, basis.gram(mixed, rows), 0)
        return basis.subtract(mixed, basis.combine(part, rows))

    # A loop, unlike a conditional, works in place.
    passes = branches.any_lane(jnp.any(short)).astype(jnp.int32)
    return jax.lax.fori_loop(0, passes, again, mixed)


def seed(own, rows, update, key, draw, size):
    """The rows `own` of the window with its zeros replaced: by an update and noise.

    `draw(key)` makes a row of about `size` standard normal entries. The update is in
    the space of the rows.
    """
    missing = basis.squared_norms(own) == 0

    def fill():
        noise = basis.map_rows(draw, jax.random.split(key, missing.size))
        length = basis.norm(update)
        known = jnp.where(length > 0, length, jnp.inf)
        first = (jnp.arange(missing.size) == 0).astype(length.dtype) * size**0.5
        direction = basis.divide(basis.widen(update), known)
        drawn = basis.add_outer(basis.scale(0.1, noise), first, direction)
        filled = _apart_from(rows, missing, own, drawn)
        return basis.where(branches.own_lane(jnp.any(missing)), filled, own)

    return branches.cond(jnp.any(missing), fill, lambda: own)


def _apart_from(rows, missing, own, found):
    """The rows `own` with `found` for those missing, orthonormal and apart from `rows`.

    The rows that are not missing are among `rows`.
    """
    found = basis.where_rows(missing, found, own)

    def outside(_, found):
        overlap = jnp.where(missing[:, None], basis.gram(found, rows), 0)
        along = lambda weights: basis.combine(weights, rows)
        return orthonormal(basis.subtract(found, basis.map_rows(along, overlap)))

    return jax.lax.fori_loop(0, 2, outside, found)  # twice is enough
