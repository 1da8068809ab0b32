r"""Thick-restart Lanczos in one compiled program.

The method is Lanczos with full reorthogonalisation and thick restart (Wu and Simon,
*Thick-restart Lanczos method for large symmetric eigenvalue problems*, SIAM J. Matrix
Anal. Appl. 22, 2000). float32 and `jit` add:

- Each product A v_j is orthogonalised against v_j and v_{j−1}, then against the whole
  basis, and once more if that removed much. Orthogonality then holds to rounding
  ("twice is enough": Giraud, Langou, Rozložník and van den Eshof, 2005), and most
  steps read the basis twice instead of four times.
- The basis has a static number of rows, zero until they are reached.
- A random direction leads out of an invariant subspace (β ≈ 0). A solve whose basis is
  invariant to its tolerance goes on, and ends once that no longer changes its answer.
- A small residual shows that a pair is right, not that none is missing. So a solve
  watches the next two Ritz pairs as well: it ends once both have converged, or once two
  more steps bring neither up to the pairs wanted.
- All numbers are in a unit near the first product, so that their squares hold.
- No residual is below the rounding of the dtype, nor below the asymmetry ⟨v_i, A v_j⟩ −
  ⟨v_j, A v_i⟩ seen so far. So `converged` is never true for a tolerance that the
  products cannot hold, nor for a matrix that is not symmetric.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.curvature import operators
from bulk_sgd.linalg import basis, packing, units
from bulk_sgd.linalg.orthogonalization import orthogonalize
from bulk_sgd.solvers import start_vector
from bulk_sgd.solvers.ritz import ORDERS, ROUNDING_UNITS, gershgorin, ritz_pairs, watch
from bulk_sgd.solvers.subspace import Subspace

# Ritz pairs watched beyond those wanted, and the steps for which they stay far off.
_GUARDS = 2
_QUIET_STEPS = 2


def bounds(rank, dimension, max_matvecs, max_basis):
    """The bounds on matvecs and on basis rows, checked, with defaults filled in."""
    # Cold starts on the MNIST MLP spend up to 8 * rank + 30 for ranks 1 to 60.
    max_matvecs = 10 * rank + 50 if max_matvecs is None else max_matvecs
    max_basis = 2 * rank + 10 if max_basis is None else max_basis
    checks.integer("max_matvecs", max_matvecs, rank, why="the rank")
    checks.integer("max_basis", max_basis, min(rank + 2, dimension, max_matvecs))
    return max_matvecs, min(max_basis, max_matvecs, dimension)


class _State(NamedTuple):
    """One Lanczos decomposition A Vᵀ = Vᵀ T + β v e_jᵀ in progress, in its unit."""

    unit: jax.Array  # `units.measured`
    rows: Any  # m + 1: first the `size` rows of V, then the next vector v, then zeros
    projected: jax.Array  # (m, m), T = V A Vᵀ in its leading block
    coupling: jax.Array  # (m + 1,), ⟨v, A v_i⟩ of the next vector v, as V A tells it
    asymmetry: jax.Array  # Frobenius norm of what ⟨v_i, A v⟩ then differed by
    size: jax.Array  # number of rows of V
    chain: jax.Array  # steps since the start or since V was invariant to the tolerance
    num_matvecs: jax.Array
    ritz_values: jax.Array  # (m,), in order of preference
    ritz_vectors: jax.Array  # (m, m), columns in the same order
    magnitude: jax.Array  # of the Ritz values, at most
    residuals: jax.Array  # (m,)
    quiet: jax.Array  # steps with the pairs wanted converged and the next ones far off
    settled: jax.Array  # (rank,), leading Ritz values when V was last invariant
    converged: jax.Array
    failed: jax.Array  # whether a value was not finite
    key: Any


@functools.partial(
    jax.jit, static_argnames=("rank", "max_matvecs", "num_rows", "which")
)
def solve(matvec, start, key, tol, scale=0.0, *, rank, max_matvecs, num_rows, which):
    """`lanczos.top_eigenpairs` with its arguments checked and its bounds resolved.

    `tol` is relative to the largest magnitude of a Ritz value, at least `scale`, which
    is returned after the `Subspace`.
    """
    with jax.default_matmul_precision("highest"):
        start_key, key = jax.random.split(key)
        like = start_vector.like(start)
        form = packing.choose(like, operators.spans_devices(matvec))
        vector = start_vector.pack(start, form, start_key)
        product = operators.linearize(matvec)
        image = lambda vector: operators.apply(product, form.unpack(vector))
        step = functools.partial(
            _expand,
            apply=lambda vector: form.pack(image(vector)),
            draw=form.random_normal,
            tol=tol,
            scale=scale,
            rank=rank,
            max_matvecs=max_matvecs,
            order=ORDERS[which],
            dimension=basis.size(like),
        )

        def running(state):
            ended = state.converged | state.failed
            return ~ended & (state.num_matvecs < max_matvecs)

        def fill(state):
            return jax.lax.while_loop(
                lambda state: running(state) & (state.size < num_rows), step, state
            )

        def cycle(state):
            state = fill(state)
            restart = functools.partial(_restart, keep=rank + (num_rows - rank) // 2)
            return jax.lax.cond(running(state), restart, lambda state: state, state)

        state = _initial(vector, key, num_rows, rank)
        restarts = num_rows < min(max_matvecs, basis.size(like))
        state = jax.lax.while_loop(running, cycle, state) if restarts else fill(state)
        # The extra row holds the next vector, which no Ritz vector includes.
        weights = jnp.pad(state.ritz_vectors[:, :rank].T, ((0, 0), (0, 1)))
        unit = jnp.where(state.unit == 0, 1, state.unit)
        found = Subspace(
            eigenvalues=unit * state.ritz_values[:rank],
            eigenvectors=form.combine(weights, state.rows),
            residuals=unit * state.residuals[:rank],
            converged=state.converged & jnp.isfinite(unit * state.magnitude),
            num_matvecs=state.num_matvecs,
        )
        return found, unit * state.magnitude


def _initial(vector, key, num_rows, rank):
    dtype = basis.working_dtype(vector)
    return _State(
        unit=jnp.zeros((), dtype),
        rows=basis.set_row(basis.zeros(vector, num_rows + 1, dtype), 0, vector),
        projected=jnp.zeros((num_rows, num_rows), dtype),
        coupling=jnp.zeros(num_rows + 1, dtype),
        asymmetry=jnp.zeros((), dtype),
        size=jnp.zeros((), jnp.int32),
        chain=jnp.zeros((), jnp.int32),
        num_matvecs=jnp.zeros((), jnp.int32),
        ritz_values=jnp.zeros(num_rows, dtype),
        ritz_vectors=jnp.zeros((num_rows, num_rows), dtype),
        magnitude=jnp.zeros((), dtype),
        residuals=jnp.full(num_rows, jnp.inf, dtype),
        quiet=jnp.zeros((), jnp.int32),
        settled=jnp.full(rank, jnp.inf, dtype),
        converged=jnp.zeros((), bool),
        failed=jnp.zeros((), bool),
        key=key,
    )


def _expand(
    state: _State, *, apply, draw, tol, scale, rank, max_matvecs, order, dimension
) -> _State:
    """One step: a matvec, orthogonalisation, Ritz pairs and residuals."""
    num_rows = len(state.projected)
    product, column, unit = _product(state, apply)
    projected = state.projected.at[:, state.size].set(column[:num_rows])
    projected = projected.at[state.size, :].set(column[:num_rows])
    beta = jnp.sqrt(basis.dot(product, product))
    size, chain = state.size + 1, state.chain + 1
    num_matvecs = state.num_matvecs + 1
    complete = size == dimension

    # On a GPU an eigendecomposition is many small kernels. Nothing reads this one
    # before the solve can end, V be invariant, or a restart follow.
    eps = ROUNDING_UNITS * jnp.finfo(beta.dtype).eps
    bound = gershgorin(projected)
    coupled = jnp.isfinite(beta) & (beta > jnp.maximum(eps, tol) * bound)
    open_ended = coupled & (chain < rank)
    last = complete | (size == num_rows) | (num_matvecs == max_matvecs)
    values, vectors, magnitude = jax.lax.cond(
        open_ended & ~last,
        lambda: (state.ritz_values, state.ritz_vectors, bound),
        lambda: ritz_pairs(projected, size, bound, order),
    )
    magnitude = jnp.maximum(magnitude, scale / jnp.where(unit == 0, 1, unit))
    rounding, tolerance = eps * magnitude, tol * magnitude
    asymmetry = _asymmetry(state, column)
    # A residual below either one would mean nothing.
    least = jnp.hypot(rounding, asymmetry)
    residuals = jnp.hypot(beta * jnp.abs(vectors[size - 1]), least)

    key, noise_key = jax.random.split(state.key)
    breakdown = beta <= rounding
    noise = functools.partial(draw, noise_key)
    fresh = _next(state.rows, product, beta, breakdown, breakdown & ~complete, noise)
    coupling = jnp.zeros_like(column).at[size - 1].set(jnp.where(breakdown, 0, beta))
    state = state._replace(
        unit=unit,
        rows=basis.set_row(state.rows, size, fresh),
        projected=projected,
        coupling=coupling,
        asymmetry=asymmetry,
        size=size,
        chain=chain,
        num_matvecs=num_matvecs,
        ritz_values=values,
        ritz_vectors=vectors,
        magnitude=magnitude,
        residuals=residuals,
        failed=~jnp.isfinite(beta),
        key=key,
    )
    exhausted = beta <= jnp.maximum(rounding, tolerance)
    return _judged(state, exhausted, complete, tolerance, rank, order)


def _judged(state: _State, exhausted, complete, tolerance, rank, order) -> _State:
    """The state with a verdict on its convergence.

    `exhausted` says whether V is invariant to the tolerance, `complete` whether it
    spans the whole space.
    """
    values, residuals, size = state.ritz_values, state.residuals, state.size
    leading = jnp.where(jnp.arange(rank) < size, values[:rank], jnp.inf)
    unchanged = jnp.all(jnp.abs(leading - state.settled) <= tolerance)
    # Never with fewer than `rank` rows: the residuals of missing rows are zero.
    trusted = jnp.where(exhausted, unchanged, state.chain >= rank) | complete
    small = jnp.all(residuals[:rank] <= tolerance) & trusted
    num_guards = min(_GUARDS, (len(values) - rank) // 4)
    known, far = watch(values, residuals, rank, num_guards, tolerance, order)
    reached = size >= rank + num_guards
    quiet = jnp.where(small & reached & far, state.quiet + 1, 0)
    none_missing = (reached & known) | (quiet > _QUIET_STEPS) | exhausted | complete
    return state._replace(
        chain=jnp.where(exhausted, 0, state.chain),
        quiet=quiet,
        settled=jnp.where(exhausted, leading, state.settled),
        converged=small & none_missing,
    )


def _next(rows, product, beta, breakdown, leave, draw):
    """The next vector: `product` over its norm β, or to `leave` a random one."""
    fresh = basis.scale(1 / jnp.where(breakdown, 1, beta), product)
    out = lambda: basis.unit(orthogonalize(draw(), rows)[0])
    return jax.lax.cond(leave, out, lambda: fresh)


def _asymmetry(state: _State, column):
    """The norm of all differences so far between ⟨v_i, A v_j⟩ and ⟨v_j, A v_i⟩.

    A symmetric A leaves nothing but the rounding of its products.
    """
    earlier = jnp.arange(len(column)) < state.size
    differences = jnp.where(earlier, column - state.coupling, 0)
    return jnp.hypot(state.asymmetry, units.length(differences))


def _product(state: _State, apply):
    """A v for the next vector v, orthogonal to all rows, what was removed, the unit.

    The three-term recurrence first: the parts along v_j and v_{j−1} are, up to rounding
    and except for the step after a restart, all that A v_j has along V. One pass over
    the whole basis then does where it would take two.
    """

    def remove(index, carry):
        product, column = carry
        index = jnp.maximum(state.size - 1 + index, 0)  # the first has none before it
        row = basis.row(state.rows, index)
        part = basis.dot(row, product)
        product = basis.subtract(product, basis.scale(part, row))
        return product, column.at[index].add(part)

    product = apply(basis.row(state.rows, state.size))
    product, unit = units.measured(product, state.unit)
    start = product, jnp.zeros_like(state.coupling)
    product, local = jax.lax.fori_loop(0, 2, remove, start)
    product, rest = orthogonalize(product, state.rows)
    return product, rest + local, unit


def _restart(state: _State, *, keep) -> _State:
    """Compresses a full basis to the span of its `keep` best Ritz vectors.

    QR makes their coefficients upper trapezoidal, so that each new row can overwrite
    the old one in place.
    """
    turn, trapezoid = jnp.linalg.qr(state.ritz_vectors.T[:keep])
    with_next = jnp.pad(trapezoid, ((0, 1), (0, 1))).at[-1, -1].set(1)

    def replace(index, rows):
        row = basis.combine(with_next[index], rows)
        return basis.set_row(rows, index, basis.unit(row))  # or rounding adds up

    rows = jax.lax.fori_loop(0, keep + 1, replace, state.rows)
    projected = turn.T @ jnp.diag(state.ritz_values[:keep]) @ turn
    coupling = trapezoid @ state.coupling[:-1]
    return state._replace(
        rows=jax.tree.map(lambda x: x.at[keep + 1 :].set(0), rows),
        projected=jnp.zeros_like(state.projected).at[:keep, :keep].set(projected),
        coupling=jnp.zeros_like(state.coupling).at[:keep].set(coupling),
        size=jnp.asarray(keep, jnp.int32),
    )
