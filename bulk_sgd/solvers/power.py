r"""Power steps from the previous subspace, for a Hessian that changes slowly.

Suppose that the basis V = [v_1 … v_k] with eigenvalues Λ (diagonal) was exact one
training step ago. The Hessian H has changed little since, and to first order only the
part R of H V outside of span V is new. The basis must change by about R Λ⁻¹. One power
step V ← orth(H V) makes this change (Bauer, *Das Verfahren der Treppeniteration*,
1957). It costs k matvecs and leaves at most the fraction λ_{k+1} / λ_k of the error. A
Krylov solver needs about 2 k matvecs before it finds k eigenvectors.

To project a single update u, one matvec is enough. The part of u in the subspace has
one direction, with coefficients q = Vᵀu / ‖Vᵀu‖ in the basis. The product H V Λ⁻¹ q is
the power step for this direction alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.curvature import operators
from bulk_sgd.linalg import basis, branches, ranks, units
from bulk_sgd.linalg.factors import zeros as factored_zeros
from bulk_sgd.linalg.orthogonalization import orthonormal
from bulk_sgd.solvers import factored_power
from bulk_sgd.solvers.lanczos import lanczos
from bulk_sgd.solvers.solver import Solver
from bulk_sgd.solvers.subspace import Subspace

_DIRECTIONS = ("basis", "update")


def power(
    along: str = "basis",
    *,
    tol: float = 0.5,
    max_matvecs: int | None = None,
    solve_every: int = 200,
    factors: int | None = None,
    axes: Any = None,
) -> Solver:
    """Returns a solver that takes one power step from the previous subspace.

    The step is V ← orth(H V), with V = [v_1 … v_k] the previous basis and H the
    Hessian. Use it with the loss of the full data and `refresh_every=1`. Lanczos runs
    instead if there is no basis yet, if an eigenvalue is not positive, if a product of
    the step lies too far outside of the span of V (see `tol`), and at every
    `solve_every`-th call. Power steps cannot find a new eigenvector that is orthogonal
    to the basis.

    Attributes of the result: `eigenvectors` are the products H y_i, made orthonormal,
    with y_i the Ritz vectors of V. `residuals` are ‖H y_i − λ_i y_i‖, from before the
    step. With `along="update"`, a step takes one product p, with a vector in the span
    of V, and the residuals are |λ_i| ‖p − V Vᵀp‖ / ‖p‖.

    With `factors`, all vectors share q = `factors` directions in the input space of
    each matrix of parameters (see `bulk_sgd.Subspace.factored`). A step computes one
    product at a time, turns the directions towards it and stores only its coordinates,
    so it never holds k dense vectors. The solver never calls Lanczos, which would hold
    2 k + 10 dense vectors. Instead, the first call takes ten power steps from random
    vectors. The vectors belong to the eigenvalues of largest magnitude, negative ones
    included. A part of each product lies outside of the directions and is lost. The
    formula for `residuals` assumes that lost parts of different products are
    orthogonal.

    Error: a step leaves the fraction λ_{k+1} / λ_k of the error before it. Here λ_{k+1}
    is the eigenvalue of largest magnitude outside of the subspace. With "update" this
    holds only for the direction P u. Every other direction of the basis keeps its error
    until an update points along it. Cost: k matvecs, or 1 with "update", and a few
    passes over the basis. See `docs/solvers.md` for measurements.

    Args:
      along: "basis" takes the power step for all k vectors, "update" only for the
        projection of the incoming update onto their span.
      tol: the largest accepted share of a product p outside of the basis,
        ‖p − V Vᵀp‖ / ‖p‖, at least 0 and below 1. Lanczos runs if a share exceeds it.
      max_matvecs: bound on the matvecs of Lanczos, as in `lanczos`.
      solve_every: calls from one Lanczos solve to the next, at least 1. It bounds the
        number of calls for which a new dominant direction can stay unseen.
      factors: the number q of directions that all basis vectors share in each matrix,
        at least 1; by default vectors are dense. With `factors`, the arguments above
        must have their defaults.
      axes: with `factors`, which axes of a parameter are rows and columns, as in
        `bulk_sgd.Subspace.factored`.

    Returns:
      A `Solver` whose state is the number of calls, an int32 scalar, or with `factors`
      a `FactoredPowerState`.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import bulk_sgd
      >>> tx = bulk_sgd.project_bulk(rank=10, solver=bulk_sgd.power("update"))
      >>> small = bulk_sgd.project_bulk(rank=10, solver=bulk_sgd.power(factors=8))
    """
    checks.one_of("along", along, _DIRECTIONS)
    checks.between("tol", tol, 0, 1, below=True)
    checks.integer("solve_every", solve_every, 1)
    full = lanczos(max_matvecs=max_matvecs)
    if factors is not None:
        given = {"along": along, "tol": tol, "max_matvecs": max_matvecs}
        return _factored(given | {"solve_every": solve_every}, factors, axes)
    move = _move_all if along == "basis" else _move_along

    def init(params, rank):
        full.init(params, rank)
        return jnp.zeros((), jnp.int32)

    def solve(matvec, subspace, count, updates, key):
        due = (count + 1) % solve_every == 0
        ready = jnp.all(subspace.eigenvalues > 0) & ~due

        def step():
            with jax.default_matmul_precision("highest"):
                unit, *pair = in_units(operators.linearize(matvec), subspace)
                moved, drift = move(*pair, updates)
                return moved.scaled(unit), drift

        def skip():
            unmoved = subspace._replace(num_matvecs=jnp.zeros((), jnp.int32))
            return unmoved, jnp.ones_like(subspace.eigenvalues[0])

        moved, drift = branches.cond(ready, step, skip)
        stands = ready & (drift <= tol)  # False for NaN too
        spent = ready * moved.num_matvecs
        kept = moved._replace(converged=stands, num_matvecs=spent)

        def restart():
            found, _ = full.solve(matvec, subspace, (), updates, key)
            found = found._replace(num_matvecs=spent + found.num_matvecs)
            # A lane that only joins in under `vmap` keeps what it has.
            return basis.where(stands, kept, found)

        return branches.cond(~stands, restart, lambda: kept), count + 1

    return Solver(init, solve, name="power")


def _factored(given, factors, axes) -> Solver:
    """The solver with a basis in factors; `given` must equal the defaults."""
    ranks.check_factors(factors)
    for name, value in given.items():
        plain = power.__kwdefaults__.get(name, "basis")
        if value != plain:
            problem = f"is {value!r}; with factors it must be {plain!r}."
            raise checks.ArgumentError(name, problem)
    init = lambda params, rank: factored_power.init(rank, basis.working_dtype(params))
    zeros = lambda params, rank: factored_zeros(params, rank, factors, axes)
    return Solver(init, factored_power.solve, name="power", zeros=zeros)


class Probe(NamedTuple):
    """The result of one matvec p = H V Λ⁻¹ q that tests a basis V on a vector u.

    Attributes:
      weights: `(k,)`, Λ⁻¹ q with q = Vᵀu / ‖Vᵀu‖, or q = (1, 0, …) if Vᵀu is zero.
      inside: `(k,)`, Vᵀp; q itself for an exact basis.
      outside: pytree like the vector, p − V Vᵀp; zero for an exact basis.
      length: scalar, ‖p‖.
      drift: scalar from 0 to 1, ‖p − V Vᵀp‖ / ‖p‖. To first order it estimates
        ‖(P − V Vᵀ) V q‖; small eigenvalues outside of the basis make it more accurate.
    """

    weights: jax.Array
    inside: jax.Array
    outside: jax.Array
    length: jax.Array
    drift: jax.Array


def in_units(matvec, subspace: Subspace):
    """A unit near the largest eigenvalue; the matvec and the subspace in this unit."""
    unit = units.power_of_two(jnp.max(jnp.abs(subspace.eigenvalues)))
    scaled = lambda vector: basis.scale(1 / unit, matvec(vector))
    return unit, scaled, subspace.scaled(1 / unit)


def probe(matvec, subspace: Subspace, vector) -> Probe:
    """Tests Ritz vectors on one vector by one matvec, both `in_units`.

    No eigenvalue may be zero.
    """
    rows = subspace.eigenvectors
    coefficients = subspace.coefficients(vector)
    length = units.length(coefficients)
    first = jnp.zeros_like(coefficients).at[0].set(1)
    direction = jnp.where(length > 0, coefficients / length, first)
    weights = direction / subspace.eigenvalues
    product = matvec(basis.combine(weights, rows))
    inside = basis.inner(rows, product)
    outside = basis.subtract(product, basis.combine(inside, rows))
    length, rest = basis.norm(product), basis.norm(outside)
    return Probe(weights, inside, outside, length, rest / length)


def _move_all(matvec, subspace: Subspace, updates):
    """V ← orth(H V); its vectors are the images of the Ritz vectors of V."""
    del updates
    rows = subspace.eigenvectors
    # One product at a time: of full data, k sets of activations may not fit.
    products = basis.map_in_turn(matvec, rows)
    projected = basis.gram(products, rows)
    values, vectors = jnp.linalg.eigh((projected + projected.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1].T
    products = basis.combine(vectors, products)
    squares = basis.squared_norms(products)
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
    """The product p of the probe replaces its part Vᵀp in the basis.

    That is the power step for the one direction V A⁻¹ Vᵀp, with A = Vᵀ H V.
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
    within = units.length(found.inside)
    along = found.inside / within
    shrink = within / found.length - 1
    turn = vectors + shrink * jnp.outer(vectors @ along, along)
    added = vectors @ along / found.length
    turned = basis.combine(turn, subspace.eigenvectors)
    moved = subspace._replace(
        eigenvalues=values,
        eigenvectors=basis.add_outer(turned, added, found.outside),
        residuals=found.drift * jnp.abs(values),
        num_matvecs=jnp.ones((), jnp.int32),
    )
    return moved, found.drift
