r"""Warm power steps: a basis that was exact a step ago, brought up to date.

Training moves the Hessian a little from step to step, so that to first order only the
part R of H V outside of span V is new: the basis turns by R Λ⁻¹, which is what one
power step V ← orth(H V) adds (Bauer, *Das Verfahren der Treppeniteration*, 1957). It
leaves λ_{k+1} / λ_k of the error, or less, for k matvecs; a Krylov solver needs about
twice as many to see k eigenvectors at all.

An update u needs less. Its dominant part is in one direction q = Uᵀu / ‖Uᵀu‖ of the
basis, and H V Λ⁻¹ q, a single matvec, is what the power step makes of that direction.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.curvature import operators
from bulk_sgd.linalg import basis
from bulk_sgd.linalg.branches import any_lane
from bulk_sgd.linalg.orthogonalization import orthonormal
from bulk_sgd.solvers.lanczos import lanczos
from bulk_sgd.solvers.subspace import Solver, Subspace

_DIRECTIONS = ("basis", "update")


def power(
    along: str = "basis", *, tol: float = 0.5, max_matvecs: int | None = None
) -> Solver:
    """Solver that takes one power step from the previous subspace.

    For the loss of the full data and `refresh_every=1`. It solves with Lanczos instead
    where there is no basis yet, where an eigenvalue is not positive, and where the
    products leave the basis, which says that it was lost.

    Attributes of the result: rows are Ritz vectors before the step, turned by it;
    `residuals` are those before the step, and along the update the part of the one
    product outside of the basis, times the eigenvalues.

    Error: that of the previous basis times λ_{k+1} / λ_k, the largest in magnitude
    among the eigenvalues left out over the smallest kept; along the update that holds
    for P u, and the rest of the basis is as old as the last update that led there.
    Cost: k matvecs, or 1 along the update, and a few passes over the basis. Measured
    along training: `docs/solvers.md`.

    Args:
      along: "basis" for a step of all k vectors, "update" for one of the direction of
        the incoming update in the basis.
      tol: largest part of a product outside of the basis, ‖p − V Vᵀp‖ / ‖p‖, from 0
        to below 1, for which the step stands; above it Lanczos solves in its place.
      max_matvecs: bound on the matvecs of Lanczos, as there.

    Returns:
      A `Solver` without state.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import bulk_sgd
      >>> tx = bulk_sgd.project_bulk(rank=10, solver=bulk_sgd.power("update"))
    """
    checks.one_of("along", along, _DIRECTIONS)
    checks.between("tol", tol, 0, 1, below=True)
    full = lanczos(max_matvecs=max_matvecs)
    move = _move_all if along == "basis" else _move_along

    def solve(matvec, subspace, state, updates, key):
        ready = jnp.all(subspace.eigenvalues > 0)

        def step():
            with jax.default_matmul_precision("highest"):
                return move(operators.linearize(matvec), subspace, updates)

        def skip():
            unmoved = subspace._replace(num_matvecs=jnp.zeros((), jnp.int32))
            return unmoved, jnp.ones_like(subspace.eigenvalues[0])

        moved, drift = jax.lax.cond(any_lane(ready), step, skip)
        stands = ready & (drift <= tol)  # False for NaN too
        spent = ready * moved.num_matvecs
        kept = moved._replace(converged=stands, num_matvecs=spent)

        def restart():
            found, _ = full.solve(matvec, subspace, (), updates, key)
            found = found._replace(num_matvecs=spent + found.num_matvecs)
            # The lanes that only join in under `vmap` keep what they have.
            return basis.where(stands, kept, found)

        return jax.lax.cond(any_lane(~stands), restart, lambda: kept), state

    return Solver(full.init, solve)


class Probe(NamedTuple):
    """What one matvec tells about a basis and a vector.

    Attributes:
      weights: `(k,)`, Λ⁻¹ q with q = Vᵀu / ‖Vᵀu‖, or the first unit vector as q where
        Vᵀu is zero.
      inside: `(k,)`, Vᵀp of the product p = H V Λ⁻¹ q; q itself for an exact basis.
      outside: pytree like the vector, p − V Vᵀp; zero for an exact basis.
      length: scalar, ‖p‖.
      drift: scalar from 0 to 1, ‖p − V Vᵀp‖ / ‖p‖: to first order in the error of the
        basis, and as far as what is left out has small eigenvalues, ‖(P − V Vᵀ) V q‖.
    """

    weights: jax.Array
    inside: jax.Array
    outside: jax.Array
    length: jax.Array
    drift: jax.Array


def probe(matvec, subspace: Subspace, vector) -> Probe:
    """How well a subspace serves a vector, by one matvec.

    Args:
      matvec: the curvature now, a callable from vector to vector.
      subspace: orthonormal Ritz vectors with eigenvalues that are not zero.
      vector: pytree like the parameters.
    """
    rows = subspace.eigenvectors
    coefficients = subspace.coefficients(vector)
    length = jnp.linalg.norm(coefficients)
    first = jnp.zeros_like(coefficients).at[0].set(1)
    direction = jnp.where(length > 0, coefficients / length, first)
    weights = direction / subspace.eigenvalues
    product = matvec(basis.combine(weights, rows))
    inside = basis.inner(rows, product)
    outside = basis.subtract(product, basis.combine(inside, rows))
    length, rest = basis.norm(product), basis.norm(outside)
    return Probe(weights, inside, outside, length, rest / length)


def _move_all(matvec, subspace: Subspace, updates):
    """V ← orth(H V), its rows the images of the Ritz vectors of V."""
    del updates
    rows = subspace.eigenvectors
    # One product at a time: of full data, k sets of activations may not fit.
    products = jax.lax.map(matvec, rows)
    projected = basis.gram(products, rows)
    values, vectors = jnp.linalg.eigh((projected + projected.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1].T
    products = basis.combine(vectors, products)
    squares = basis.map_rows(lambda row: basis.dot(row, row), products)
    outside = squares - jnp.sum((vectors @ projected) ** 2, axis=1)
    residuals = jnp.sqrt(jnp.maximum(outside, 0))
    moved = subspace._replace(
        eigenvalues=values,
        eigenvectors=orthonormal(products),
        residuals=residuals,
        num_matvecs=jnp.int32(subspace.rank),
    )
    return moved, jnp.max(residuals / jnp.sqrt(squares))


def _move_along(matvec, subspace: Subspace, updates):
    """Puts the product p of the probe in the place of its part inside of the basis.

    That is the power step of one direction, V A⁻¹ V Vᵀp with A = V H Vᵀ.
    """
    values = subspace.eigenvalues
    found = probe(matvec, subspace, updates)
    # The least symmetric change of the quotients that explains p (Powell's).
    weights, change = found.weights, found.inside - values * found.weights
    square = weights @ weights
    secant = jnp.outer(change, weights) / square
    secant = secant + secant.T
    secant -= (change @ weights) / square**2 * jnp.outer(weights, weights)
    values, vectors = jnp.linalg.eigh(jnp.diag(values) + secant)
    values, vectors = values[::-1], vectors[:, ::-1].T
    within = jnp.linalg.norm(found.inside)
    along = found.inside / within
    shrink = within / found.length - 1
    turn = vectors + shrink * jnp.outer(vectors @ along, along)
    added = vectors @ along / found.length
    rows = jax.tree.map(
        lambda rows, x: rows + added.reshape(-1, *(1,) * x.ndim) * x,
        basis.combine(turn, subspace.eigenvectors),
        found.outside,
    )
    moved = subspace._replace(
        eigenvalues=values,
        eigenvectors=rows,
        residuals=found.drift * jnp.abs(values),
        num_matvecs=jnp.ones((), jnp.int32),
    )
    return moved, found.drift
