"""Power steps on a basis in factors, for the solver `power`.

A step computes V ← orth(H V), in the order of the Ritz values, as with a dense basis.
But the frames turn towards each product H v_i before the next one is computed, and only
its coordinates are kept. So there is one dense product at a time, never k.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd.curvature import operators
from bulk_sgd.linalg import basis, branches, frames, units
from bulk_sgd.linalg.factors import Factored
from bulk_sgd.linalg.orthogonalization import orthonormal
from bulk_sgd.solvers.subspace import Subspace

EAGER = 10  # steps of the first call, which begins with random rows


class FactoredPowerState(NamedTuple):
    """State of `power` in factors, with the basis V = [v_1 … v_k].

    Attributes:
      count: int32, calls so far.
      lost: `(k,)`, the share of ‖H v_i‖² outside of the frames, from 0 to 1.
    """

    count: jax.Array
    lost: jax.Array


class _Products(NamedTuple):
    """The products p_i = H v_i so far, by their coordinates.

    Attributes:
      frames: the frames of the coordinates below.
      old: coordinates of the v_i.
      rows: coordinates of p_i / ‖p_i‖, zero for products not yet computed.
      lengths: `(k,)`, ‖p_i‖.
      inside: `(k, k)`, v_iᵀ p_j / ‖p_j‖.
    """

    frames: Any
    old: Any
    rows: Any
    lengths: jax.Array
    inside: jax.Array


def init(rank: int, dtype) -> FactoredPowerState:
    """The state before the first call."""
    return FactoredPowerState(jnp.zeros((), jnp.int32), jnp.zeros(rank, dtype))


def solve(matvec, subspace: Subspace, state: FactoredPowerState, updates, key):
    """One call of the solver: one step, or `EAGER` steps if there is no basis yet."""
    del updates
    new = ~jnp.any(basis.squared_norms(subspace.eigenvectors) > 0)
    steps = jnp.where(new, EAGER, 1)
    with jax.default_matmul_precision("highest"):
        multiply = operators.linearize(matvec)

        def step(index, known):
            # A step can lose rows: those that a large eigenvalue makes alike.
            one = jax.random.fold_in(key, index)
            rows = _seeded(known[0].eigenvectors, one)
            return _step(multiply, known[0]._replace(eigenvectors=rows))

        found, lost = jax.lax.fori_loop(0, steps, step, (subspace, state.lost))
    found = found._replace(
        converged=jnp.all(jnp.isfinite(lost)),
        num_matvecs=(steps * subspace.rank).astype(jnp.int32),
    )
    return found, FactoredPowerState(state.count + 1, lost)


def _step(matvec, subspace: Subspace):
    """The subspace after a step; the share of each product outside of the frames."""
    rows, size = subspace.eigenvectors, subspace.rank
    zero = jnp.zeros_like(subspace.eigenvalues)
    begin = _Products(
        rows.frames,
        rows.coordinates,
        jax.tree.map(jnp.zeros_like, rows.coordinates),
        zero,
        jnp.zeros((size, size), zero.dtype),
    )
    one = lambda index, known: _multiplied(matvec, index, known)
    found = jax.lax.fori_loop(0, size, one, begin)
    unit = units.power_of_two(jnp.max(found.lengths))
    lengths = found.lengths / unit
    projected = found.inside * lengths
    values, turn = jnp.linalg.eigh((projected + projected.T) / 2)
    values, turn = values[::-1], turn[:, ::-1].T

    products = basis.scale_rows(lengths, found.rows)
    held = basis.squared_norms(products)
    # The squared lengths are exact: they include what is outside of the frames.
    beyond = jnp.maximum(lengths**2 - held, 0)
    products = basis.combine(turn, products)
    squares = basis.squared_norms(products) + turn**2 @ beyond
    outside = squares - jnp.sum((turn @ projected) ** 2, axis=1)
    moved = subspace._replace(
        eigenvalues=unit * values,
        eigenvectors=Factored(orthonormal(products), found.frames),
        residuals=unit * jnp.sqrt(jnp.maximum(outside, 0)),
    )
    lost = beyond / jnp.where(lengths > 0, lengths, 1) ** 2
    return moved, jnp.where(lengths > 0, lost, 0)


def _multiplied(matvec, index, known: _Products) -> _Products:
    """Multiplies one row, and turns the frames towards the product."""
    own = basis.row(known.old, index)
    product = matvec(frames.lift(known.frames, own))
    length = basis.norm(product)
    # Where H has fewer directions than V, only rounding is left of some products.
    facts = jnp.finfo(length.dtype)
    floor = jnp.maximum(100 * facts.eps * jnp.max(known.lengths), 4 * facts.tiny)
    inverse = 1 / jnp.where(length > floor, length, jnp.inf)
    unit = lambda vector: basis.scale(inverse, vector)
    one = lambda vector: jax.tree.map(lambda x: x[None], vector)
    inside = unit(frames.compress(known.frames, product))
    later = jnp.arange(len(known.lengths)) > index
    now = basis.where_rows(later, known.old, basis.set_row(known.rows, index, inside))
    turned = frames.turn(known.frames, now, one(product), one(inside), inverse[None])
    old, rows = (
        frames.translate(known.frames, turned, x) for x in (known.old, known.rows)
    )
    inside = unit(frames.compress(turned, product))
    rows = basis.set_row(rows, index, inside)
    along = basis.inner(old, inside)
    return _Products(
        turned,
        old,
        rows,
        known.lengths.at[index].set(length),
        known.inside.at[:, index].set(along),
    )


def _seeded(rows: Factored, key) -> Factored:
    """The basis, with random rows in place of missing ones."""
    missing = basis.squared_norms(rows) == 0
    some = jnp.any(missing)

    def fill():
        like = basis.like(rows.coordinates)
        draw = lambda key: frames.random_normal(rows.frames, like, key)
        drawn = basis.map_rows(draw, jax.random.split(key, len(missing)))
        filled = basis.where_rows(missing, drawn, rows.coordinates)
        # The rows that are there come first, and stay as they are.
        order = jnp.argsort(missing, stable=True)
        filled = orthonormal(jax.tree.map(lambda x: x[order], filled))
        filled = jax.tree.map(lambda x: x[jnp.argsort(order)], filled)
        filled = rows.mix(lambda _: filled)
        return basis.where(branches.own_lane(some), filled, rows)

    return branches.cond(some, fill, lambda: rows)
