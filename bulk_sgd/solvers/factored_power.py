"""Power steps on a basis in factors, for the solver `power`.

A step computes V ← orth(H V), in the order of the Ritz values, as with a dense basis.
But it cuts each product H v_i before it computes the next one, and keeps only its
factors. So there is one dense product at a time, never k. Rotation and
orthogonalisation change only the mixing matrix of the basis, which is small.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd.curvature import operators
from bulk_sgd.linalg import basis, branches, factors, recut, units
from bulk_sgd.solvers.subspace import Subspace

EAGER = 10  # steps of the first call, which begins with random rows

_multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class FactoredPowerState(NamedTuple):
    """State of `power` in factors, with the basis V = [v_1 … v_k].

    Attributes:
      count: int32, calls so far.
      lost: `(k,)`, the share of ‖H v_i‖² that the last cut took, from 0 to 1.
    """

    count: jax.Array
    lost: jax.Array


class _Cut(NamedTuple):
    """A product p = H v_i and its cut; lengths are multiples of `unit`.

    Attributes:
      row: the cut product, scaled to length one.
      kept: the squared length of the cut product before this scaling.
      square: ‖p‖².
      inside: `(k,)`, Vᵀ p.
      unit: a scalar.
    """

    row: Any
    kept: jax.Array
    square: jax.Array
    inside: jax.Array
    unit: jax.Array


def init(rank: int, dtype) -> FactoredPowerState:
    """The state before the first call."""
    return FactoredPowerState(jnp.zeros((), jnp.int32), jnp.zeros(rank, dtype))


def solve(matvec, subspace: Subspace, state: FactoredPowerState, updates, key):
    """One call of the solver: one step, or `EAGER` steps if there is no basis yet."""
    del updates
    new = jnp.all(subspace.eigenvectors.mixing == 0)
    steps = jnp.where(new, EAGER, 1)
    with jax.default_matmul_precision("highest"):
        multiply = operators.linearize(matvec)

        def step(index, known):
            rows = known[0].eigenvectors
            # A step can lose rows: those that a large eigenvalue makes alike.
            rows = _seeded(rows, jax.random.fold_in(key, index))
            return _step(multiply, known[0]._replace(eigenvectors=rows))

        found, lost = jax.lax.fori_loop(0, steps, step, (subspace, state.lost))
    found = found._replace(
        converged=jnp.all(jnp.isfinite(lost)),
        num_matvecs=(steps * subspace.rank).astype(jnp.int32),
    )
    return found, FactoredPowerState(state.count + 1, lost)


def _step(matvec, subspace: Subspace):
    """The subspace after a step, and the share that each cut took."""
    rows, size = subspace.eigenvectors, subspace.rank
    products = factors.gram(rows.stored, rows.stored)
    one = functools.partial(_product, matvec, rows, products)
    cut = jax.lax.map(one, jnp.arange(size))
    unit = jnp.max(cut.unit)
    relative = cut.unit / unit
    length = relative * units.root(cut.kept)
    projected = relative[:, None] * cut.inside
    values, vectors = jnp.linalg.eigh((projected + projected.T) / 2)
    values, turn = values[::-1], vectors[:, ::-1].T

    own = factors.gram(cut.row, cut.row)
    squares = jnp.outer(length, length) * own
    # The squared lengths are exact: they include what the cuts take.
    squares = jnp.where(jnp.eye(size, dtype=bool), relative**2 * cut.square, squares)
    whole = jnp.sum(_multiply(turn, squares) * turn, axis=1)
    outside = whole - jnp.sum(_multiply(turn, projected) ** 2, axis=1)
    moved = subspace._replace(
        eigenvalues=unit * values,
        eigenvectors=_rotated(cut.row, own, length, turn),
        residuals=unit * jnp.sqrt(jnp.maximum(outside, 0)),
    )
    lost = 1 - cut.kept / jnp.where(cut.square > 0, cut.square, 1)
    return moved, jnp.where(cut.square > 0, jnp.clip(lost, 0, 1), 0)


def _product(matvec, rows, products, index) -> _Cut:
    """Multiplies one row of the basis and cuts the product."""
    own = rows.mixing[index]
    product = matvec(basis.row(rows, index))
    frame = recut.frame(jax.tree.map(lambda x: x[None], product), rows.stored, products)
    target = jnp.append(jnp.ones_like(own[:1]), jnp.zeros_like(own))
    start = jnp.argmax(jnp.abs(own))
    moved, kept = recut.move(frame, target[None], start[None])
    row = jax.tree.map(lambda x: x[0], moved)
    inside = _multiply(rows.mixing, frame.gram[0, 1:])
    return _Cut(row, kept[0], frame.gram[0, 0], inside, frame.unit)


def _rotated(stored, products, length, turn):
    """Turns the products and makes them orthonormal in their order.

    This takes small matrices only: an orthonormal basis of the stored rows, then the
    coordinates of the products in this basis.
    """
    first = factors.orthonormalizing(products)
    found = _multiply(turn * length[None], _multiply(products, first.T))
    norm = units.length(found, axis=1)[:, None]
    found /= jnp.where(norm > 0, norm, 1)
    floor = 100 * jnp.finfo(found.dtype).eps
    for _ in range(2):  # twice is enough
        squares = _multiply(found, found.T)
        found = _multiply(factors.orthonormalizing(squares, floor), found)
    return factors.Factored(_multiply(found, first), stored)


def _seeded(rows: factors.Factored, key) -> factors.Factored:
    """The rows, with random rows in place of missing ones."""
    missing = jnp.any(jnp.all(rows.mixing == 0, axis=1))

    def fill():
        depends = jnp.all(rows.orthonormal().mixing == 0, axis=1)
        drawn = basis.random_normal(key, rows.stored)
        stored = basis.where_rows(depends, drawn, rows.stored)
        filled = factors.Factored(rows.mixing, stored).orthonormal()
        return basis.where(branches.own_lane(missing), filled, rows)

    return branches.cond(missing, fill, lambda: rows)
