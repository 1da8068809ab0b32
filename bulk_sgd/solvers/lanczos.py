r"""Top-k eigenpairs by thick-restart Lanczos, whole in one compiled program.

The method is Lanczos with full reorthogonalisation and thick restart (Wu and Simon,
*Thick-restart Lanczos method for large symmetric eigenvalue problems*, SIAM J. Matrix
Anal. Appl. 22, 2000). What float32 and `jit` ask for:

- Every new vector is orthogonalised twice against the whole basis, as two dense
  products, so that orthogonality holds to rounding ("twice is enough": Giraud,
  Langou, Rozložník and van den Eshof, 2005).
- The basis has a static number of rows, zeros where not reached. The projected matrix
  is completed with a diagonal that no true eigenvalue can reach, so that unreached
  rows never show up as false zeros.
- An invariant subspace (β ≈ 0) is left along a random direction, and a solve whose
  basis is invariant to its tolerance ends only when going on did not change its
  answer, so that a repeated eigenvalue is seen as often as it occurs.
- Residuals carry a floor of the dtype's rounding, so that `converged` is never true
  for a tolerance that the arithmetic cannot hold.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import basis, checks, curvature
from bulk_sgd.subspace import Solver, Subspace

# Rounding errors of one step, in units of eps times the largest Ritz value: below
# this a residual means nothing, and a new direction is noise.
ROUNDING_UNITS = 16
# Weight of the random direction in a warm start. It lets an eigenvector in that the
# previous subspace had nothing of; from 0 to 0.3 the matvec count does not change.
_EXPLORATION = 0.03
_ORDERS = {"largest": lambda x: x, "smallest": lambda x: -x, "magnitude": jnp.abs}


def top_eigenpairs(
    matvec,
    start,
    rank: int = 10,
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    *,
    max_basis: int | None = None,
    which: str = "largest",
    key=None,
) -> Subspace:
    """Leading eigenpairs of a symmetric operator on pytrees.

    Runs as one compiled program, inside or outside `jit`, `scan` and `vmap`; outside,
    calls on the same kind of `matvec` share it. Work: one matvec and two
    orthogonalisation passes per step. Memory: `max_basis + 4` vectors and the result.

    A single Krylov sequence sees one direction of an exactly repeated eigenvalue, and
    of a cluster narrower than `tol`: tighten `tol` to separate the members.

    Args:
      matvec: symmetric linear callable from a pytree to one of the same structure,
        such as `bulk_sgd.hessian(value_fn, params)`.
      start: the start vector, a pytree of floating point arrays, or a `Subspace` from
        a nearby point (warm start). Zero or not finite: a random vector.
      rank: number of eigenpairs k, from 1 to the dimension.
      tol: converged when all residuals ‖A u_i − λ_i u_i‖ ≤ tol · max|λ|.
      max_matvecs: bound on the number of matvecs, at least `rank`; by default
        `10 * rank + 50`.
      max_basis: number of basis vectors kept between restarts, at least `rank + 2`
        unless it spans the whole space; by default `2 * rank + 10`.
      which: "largest" (algebraic), "smallest" (algebraic) or "magnitude".
      key: PRNG key of the random directions; by default a fixed one.

    Returns:
      A `Subspace` of `rank` orthonormal rows in float32 (float64 if `start` is), with
      eigenvalues in the order of `which`, residuals, `converged` and `num_matvecs`.
      Where the operator gives a value that is not finite, `converged` is False and
      the numbers are NaN.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> H = jnp.diag(jnp.arange(1.0, 101.0))
      >>> matvec = jax.tree_util.Partial(jnp.matmul, H)
      >>> pairs = bulk_sgd.top_eigenpairs(matvec, jnp.ones(100), rank=2, tol=1e-5)
      >>> pairs.eigenvalues.round(2).tolist(), bool(pairs.converged)
      ([100.0, 99.0], True)
    """
    warm = isinstance(start, Subspace)
    like = basis.row(start.eigenvectors, 0) if warm else start
    like = jax.tree.map(jnp.asarray, like)
    checks.floating("start", like)
    dimension = basis.size(like)
    checks.integer("rank", rank, 1, dimension, "the number of parameters")
    checks.at_least("tol", tol, 0)
    checks.one_of("which", which, _ORDERS)
    max_matvecs, num_rows = _bounds(rank, dimension, max_matvecs, max_basis)
    key = jax.random.key(0) if key is None else key
    return _solve(
        curvature.as_pytree(matvec),
        start if warm else basis.widen(like),
        key,
        tol,
        rank=rank,
        max_matvecs=max_matvecs,
        num_rows=num_rows,
        which=which,
    )


def lanczos(
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    *,
    max_basis: int | None = None,
    which: str = "largest",
    warm_start: bool = True,
) -> Solver:
    """Solver that runs `top_eigenpairs` to its tolerance at every refresh.

    Error: residuals below `tol · λ_1`. Cost on an MLP of 199,210 parameters, rank 10
    and the default tolerance: 18 to 23 matvecs.

    Args:
      tol: as in `top_eigenpairs`.
      max_matvecs: as in `top_eigenpairs`.
      max_basis: as in `top_eigenpairs`.
      which: as in `top_eigenpairs`.
      warm_start: start from the previous subspace rather than a random vector.

    Returns:
      A `Solver` without state.

    Raises:
      ValueError: if an argument is out of its range, at `init` if it is for the rank.

    Example:
      >>> import bulk_sgd
      >>> tx = bulk_sgd.project_bulk(rank=10, solver=bulk_sgd.lanczos(tol=1e-2))
    """
    checks.at_least("tol", tol, 0)
    checks.one_of("which", which, _ORDERS)
    for name, bound in (("max_matvecs", max_matvecs), ("max_basis", max_basis)):
        if bound is not None:
            checks.integer(name, bound, 1)
    options = {"max_basis": max_basis, "which": which}

    def init(params, rank):
        # optax.tree_map_params passes a tree without leaves.
        _bounds(rank, basis.size(params) or rank, max_matvecs, max_basis)
        return ()

    def solve(matvec, subspace, state, updates, key):
        start_key, key = jax.random.split(key)
        start = subspace if warm_start else basis.random_normal(start_key, updates)
        found = top_eigenpairs(
            matvec, start, subspace.rank, tol, max_matvecs, key=key, **options
        )
        return found, state

    return Solver(init, solve)


def _bounds(rank, dimension, max_matvecs, max_basis):
    """The bounds on matvecs and on basis rows, with their defaults, checked."""
    if max_matvecs is None:
        # Cold starts on the MNIST MLP spend up to 8 * rank + 30, rank 1 to 60.
        max_matvecs = 10 * rank + 50
    if max_basis is None:
        max_basis = 2 * rank + 10
    checks.integer("max_matvecs", max_matvecs, rank, why="the rank")
    checks.integer("max_basis", max_basis, min(rank + 2, dimension, max_matvecs))
    return max_matvecs, min(max_basis, max_matvecs, dimension)


class _State(NamedTuple):
    """One Lanczos decomposition A Vᵀ = Vᵀ T + β v e_jᵀ in progress.

    Attributes:
      rows: basis of `num_rows + 1` rows; rows 0 … size − 1 are V, row `size` is the
        next vector v, the rest is zero.
      projected: `(num_rows, num_rows)`, T = V A Vᵀ in its leading block.
      size: int32, number of rows of V.
      chain: int32, steps since the start or since V was invariant to the tolerance.
      num_matvecs: int32.
      ritz_values: `(num_rows,)`, in order of preference.
      ritz_vectors: `(num_rows, num_rows)`, columns in the same order.
      residuals: `(num_rows,)`.
      settled: `(rank,)`, leading Ritz values when V was last invariant.
      converged: bool.
      failed: bool, a value was not finite.
      key: PRNG key.
    """

    rows: Any
    projected: jax.Array
    size: jax.Array
    chain: jax.Array
    num_matvecs: jax.Array
    ritz_values: jax.Array
    ritz_vectors: jax.Array
    residuals: jax.Array
    settled: jax.Array
    converged: jax.Array
    failed: jax.Array
    key: Any


@functools.partial(
    jax.jit, static_argnames=("rank", "max_matvecs", "num_rows", "which")
)
def _solve(matvec, start, key, tol, *, rank, max_matvecs, num_rows, which):
    with jax.default_matmul_precision("highest"):
        start_key, key = jax.random.split(key)
        vector = _start_vector(start, start_key)
        apply = curvature.linearize(matvec)
        step = functools.partial(
            _expand,
            apply=apply,
            tol=tol,
            rank=rank,
            max_matvecs=max_matvecs,
            order=_ORDERS[which],
            dimension=basis.size(vector),
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
        if num_rows < min(max_matvecs, basis.size(vector)):
            state = jax.lax.while_loop(running, cycle, state)
        else:
            state = fill(state)
        # The extra row holds the next vector, which no Ritz vector includes.
        weights = jnp.pad(state.ritz_vectors[:, :rank].T, ((0, 0), (0, 1)))
        return Subspace(
            eigenvalues=state.ritz_values[:rank],
            eigenvectors=basis.combine(weights, state.rows),
            residuals=state.residuals[:rank],
            converged=state.converged,
            num_matvecs=state.num_matvecs,
        )


def _start_vector(start, key):
    """The normalised start vector, random where there is nothing better."""
    if isinstance(start, Subspace):
        like = basis.row(start.eigenvectors, 0)
        # A Krylov sequence favours large eigenvalues: the inverse weights even it out.
        size = jnp.abs(start.eigenvalues)
        weights = 1 / jnp.maximum(size, 1e-2 * jnp.max(size) + jnp.finfo(size).tiny)
        vector = basis.combine(weights / jnp.linalg.norm(weights), start.eigenvectors)
    else:
        like = vector = start
    noise = basis.unit(basis.random_normal(key, like))
    length = basis.norm(vector)
    usable = jnp.isfinite(length) & (length > 0)
    vector = basis.scale(1 / jnp.where(usable, length, 1), vector)
    if isinstance(start, Subspace):
        vector = jax.tree.map(lambda x, n: x + _EXPLORATION * n, vector, noise)
    return basis.unit(basis.where(usable, vector, noise))


def _initial(vector, key, num_rows, rank):
    dtype = basis.working_dtype(vector)
    return _State(
        rows=basis.set_row(basis.zeros(vector, num_rows + 1, dtype), 0, vector),
        projected=jnp.zeros((num_rows, num_rows), dtype),
        size=jnp.zeros((), jnp.int32),
        chain=jnp.zeros((), jnp.int32),
        num_matvecs=jnp.zeros((), jnp.int32),
        ritz_values=jnp.zeros(num_rows, dtype),
        ritz_vectors=jnp.zeros((num_rows, num_rows), dtype),
        residuals=jnp.full(num_rows, jnp.inf, dtype),
        settled=jnp.full(rank, jnp.inf, dtype),
        converged=jnp.zeros((), bool),
        failed=jnp.zeros((), bool),
        key=key,
    )


def _expand(
    state: _State, *, apply, tol, rank, max_matvecs, order, dimension
) -> _State:
    """One step: a matvec, two orthogonalisation passes, Ritz pairs and residuals."""
    num_rows = state.projected.shape[0]
    product = apply(basis.row(state.rows, state.size))
    product, first = basis.orthogonalize(product, state.rows)
    product, second = basis.orthogonalize(product, state.rows)
    column = (first + second)[:num_rows]
    projected = state.projected.at[:, state.size].set(column)
    projected = projected.at[state.size, :].set(column)
    beta = basis.norm(product)
    size, chain = state.size + 1, state.chain + 1
    num_matvecs = state.num_matvecs + 1
    complete = size == dimension
    eps = ROUNDING_UNITS * jnp.finfo(beta.dtype).eps
    bound = jnp.max(jnp.sum(jnp.abs(projected), axis=1))  # Gershgorin's, of max|θ|

    # On a GPU an eigendecomposition is many small kernels, and nothing reads it before
    # the solve can end, V be invariant, or a restart follow.
    coupled = jnp.isfinite(beta) & (beta > jnp.maximum(eps, tol) * bound)
    open_ended = coupled & (chain < rank)
    last = complete | (size == num_rows) | (num_matvecs == max_matvecs)
    values, vectors, magnitude = jax.lax.cond(
        open_ended & ~last,
        lambda: (state.ritz_values, state.ritz_vectors, bound),
        lambda: _ritz_pairs(projected, size, bound, order),
    )
    rounding = eps * magnitude
    coupling = beta * jnp.abs(vectors[size - 1])
    residuals = jnp.hypot(coupling, rounding)
    small = jnp.all(residuals[:rank] <= tol * magnitude)

    breakdown = beta <= rounding
    exhausted = beta <= jnp.maximum(rounding, tol * magnitude)
    leading = jnp.where(jnp.arange(rank) < size, values[:rank], jnp.inf)
    unchanged = jnp.all(jnp.abs(leading - state.settled) <= tol * magnitude)
    # Never with fewer than `rank` rows, of which the missing have residuals of zero.
    trusted = jnp.where(exhausted, unchanged, chain >= rank) | complete

    key, noise_key = jax.random.split(state.key)
    fresh = basis.scale(1 / jnp.where(breakdown, 1, beta), product)
    fresh = jax.lax.cond(
        breakdown & ~complete,
        lambda vector: _random_direction(noise_key, vector, state.rows),
        lambda vector: vector,
        fresh,
    )
    return _State(
        rows=basis.set_row(state.rows, size, fresh),
        projected=projected,
        size=size,
        chain=jnp.where(exhausted, 0, chain),
        num_matvecs=num_matvecs,
        ritz_values=values,
        ritz_vectors=vectors,
        residuals=residuals,
        settled=jnp.where(exhausted, leading, state.settled),
        converged=small & trusted,
        failed=~jnp.isfinite(beta),
        key=key,
    )


def _ritz_pairs(projected, size, bound, order):
    """Ritz values and vectors of the leading block, preferred first, and max|θ|.

    `bound` is at least max|θ|.
    """
    index = jnp.arange(projected.shape[0])
    reached = index < size
    filler = jnp.where(reached, 0, -2 * bound - 1)
    values, vectors = jnp.linalg.eigh(projected + jnp.diag(filler))
    true = index >= index.size - size  # eigh ascends: fillers come first
    ranking = jnp.argsort(jnp.where(true, order(values), -jnp.inf), descending=True)
    magnitude = jnp.max(jnp.where(true, jnp.abs(values), 0))
    return values[ranking], vectors[:, ranking], magnitude


def _restart(state: _State, *, keep) -> _State:
    """Compress a full basis to the span of its `keep` best Ritz vectors.

    In the basis of it that is upper trapezoidal in the old rows a new row needs none
    of the old ones above its own, so that it takes one's place: no second basis.
    """
    turn, trapezoid = jnp.linalg.qr(state.ritz_vectors.T[:keep])
    with_next = jnp.pad(trapezoid, ((0, 1), (0, 1))).at[-1, -1].set(1)

    def replace(index, rows):
        row = basis.combine(with_next[index], rows)
        return basis.set_row(rows, index, basis.unit(row))  # lest rounding add up

    rows = jax.lax.fori_loop(0, keep + 1, replace, state.rows)
    projected = turn.T @ jnp.diag(state.ritz_values[:keep]) @ turn
    return state._replace(
        rows=jax.tree.map(lambda x: x.at[keep + 1 :].set(0), rows),
        projected=jnp.zeros_like(state.projected).at[:keep, :keep].set(projected),
        size=jnp.asarray(keep, jnp.int32),
    )


def _random_direction(key, like, rows):
    def orthogonal(_, vector):
        return basis.unit(basis.orthogonalize(vector, rows)[0])

    vector = basis.unit(basis.random_normal(key, like))
    return jax.lax.fori_loop(0, 2, orthogonal, vector)
