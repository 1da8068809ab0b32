r"""Thick-restart Lanczos, whole in one compiled program.

The method is Lanczos with full reorthogonalisation and thick restart (Wu and Simon,
*Thick-restart Lanczos method for large symmetric eigenvalue problems*, SIAM J. Matrix
Anal. Appl. 22, 2000). What float32 and `jit` ask for:

- Every product A v_j is orthogonalised against v_j and v_{j−1} and then against the
  whole basis, as two dense products, and once more where that took away much, so that
  orthogonality holds to rounding ("twice is enough": Giraud, Langou, Rozložník and van
  den Eshof, 2005) and most steps read the basis twice rather than four times.
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

from bulk_sgd import checks
from bulk_sgd.curvature import operators
from bulk_sgd.linalg import basis, packing
from bulk_sgd.linalg.orthogonalization import orthogonalize
from bulk_sgd.solvers.subspace import Subspace

# Rounding errors of one step, in units of eps times the largest Ritz value: below
# this a residual means nothing, and a new direction is noise.
ROUNDING_UNITS = 16
# Weight of the random direction in a warm start. It lets an eigenvector in that the
# previous subspace had nothing of; from 0 to 0.3 the matvec count does not change.
_EXPLORATION = 0.03
ORDERS = {"largest": lambda x: x, "smallest": lambda x: -x, "magnitude": jnp.abs}


def bounds(rank, dimension, max_matvecs, max_basis):
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
def solve(matvec, start, key, tol, *, rank, max_matvecs, num_rows, which):
    """`lanczos.top_eigenpairs` without its defaults and checks; with `bounds`."""
    with jax.default_matmul_precision("highest"):
        start_key, key = jax.random.split(key)
        like = _like(start)
        form = packing.choose(like, operators.spans_devices(matvec))
        vector = _start_vector(start, form, start_key)
        product = operators.linearize(matvec)
        step = functools.partial(
            _expand,
            apply=lambda vector: form.pack(_applied(product, form.unpack(vector))),
            draw=form.random_normal,
            tol=tol,
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
        if num_rows < min(max_matvecs, basis.size(like)):
            state = jax.lax.while_loop(running, cycle, state)
        else:
            state = fill(state)
        # The extra row holds the next vector, which no Ritz vector includes.
        weights = jnp.pad(state.ritz_vectors[:, :rank].T, ((0, 0), (0, 1)))
        return Subspace(
            eigenvalues=state.ritz_values[:rank],
            eigenvectors=form.combine(weights, state.rows),
            residuals=state.residuals[:rank],
            converged=state.converged,
            num_matvecs=state.num_matvecs,
        )


def _like(start):
    """Shapes and dtypes of the vectors of a solve from `start`."""
    warm = isinstance(start, Subspace)
    dtype = basis.working_dtype(start.eigenvectors if warm else start)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:] if warm else x.shape, dtype),
        start.eigenvectors if warm else start,
    )


def _applied(product, vector):
    """`product(vector)`; raises ValueError if that is not a vector like `vector`."""
    result = product(vector)

    def fits(x, y):
        dtype = jnp.promote_types(jnp.result_type(x), y.dtype)
        return jnp.shape(x) == y.shape and dtype == y.dtype

    trees = result, vector
    same = jax.tree.structure(result) == jax.tree.structure(vector)
    if not same or not all(map(fits, *map(jax.tree.leaves, trees))):
        found, expected = (
            jax.tree.map(lambda x: f"{jnp.result_type(x)}{[*jnp.shape(x)]}", tree)
            for tree in trees
        )
        raise ValueError(
            f"matvec returned {found}; it must return a vector like its argument, "
            f"{expected}."
        )
    return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), result, vector)


def _start_vector(start, form, key):
    """The normalised start vector in its form, random where nothing is better."""
    if isinstance(start, Subspace):
        # A Krylov sequence favours large eigenvalues: the inverse weights even it out.
        size = jnp.abs(start.eigenvalues)
        weights = 1 / jnp.maximum(size, 1e-2 * jnp.max(size) + jnp.finfo(size).tiny)
        vector = basis.combine(weights / jnp.linalg.norm(weights), start.eigenvectors)
    else:
        vector = start
    vector = form.pack(basis.widen(vector))
    noise = basis.unit(form.random_normal(key))
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
    state: _State, *, apply, draw, tol, rank, max_matvecs, order, dimension
) -> _State:
    """One step: a matvec, orthogonalisation, Ritz pairs and residuals."""
    num_rows = state.projected.shape[0]
    product = apply(basis.row(state.rows, state.size))
    product, local = _orthogonalize_locally(product, state)
    product, column = orthogonalize(product, state.rows)
    column = (column + local)[:num_rows]
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
        lambda: basis.unit(orthogonalize(draw(noise_key), state.rows)[0]),
        lambda: fresh,
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


def _orthogonalize_locally(product, state: _State):
    """The three-term recurrence: A v_j without its parts along v_j and v_{j−1}.

    Short of rounding, and but for the step after a restart, that is all of its part
    along V, so that one pass over the whole basis then does where it would take two.

    Returns:
      The remaining vector, and the inner products with all rows, zeros but for the two.
    """

    def remove(index, carry):
        product, column = carry
        index = jnp.maximum(state.size - 1 + index, 0)  # the first has none before it
        row = basis.row(state.rows, index)
        part = basis.dot(row, product)
        product = basis.subtract(product, basis.scale(part, row))
        return product, column.at[index].add(part)

    nothing = jnp.zeros(basis.num_rows(state.rows), state.projected.dtype)
    return jax.lax.fori_loop(0, 2, remove, (product, nothing))


def _ritz_pairs(projected, size, bound, order):
    """Ritz values and vectors of the leading block, preferred first, and max|θ|.

    `bound` is at least max|θ|.
    """
    index = jnp.arange(projected.shape[0])
    reached = index < size
    # Below -max|θ| with some room, and no further: errors grow with the largest entry.
    filler = jnp.where(reached, 0, jnp.where(bound > 0, -1.25 * bound, -1))
    values, vectors = _eigh(projected + jnp.diag(filler))
    true = index >= index.size - size  # eigh ascends: fillers come first
    ranking = jnp.argsort(jnp.where(true, order(values), -jnp.inf), descending=True)
    magnitude = jnp.max(jnp.where(true, jnp.abs(values), 0))
    return values[ranking], vectors[:, ranking], magnitude


def _eigh(matrix):
    """`jnp.linalg.eigh`, on NVIDIA's GPUs by QR.

    For up to 32 rows JAX takes Jacobi's method there, which was half as fast and left
    residuals several times as large. QR left vectors of a multiple eigenvalue up to
    7e-3 from orthogonal, which a step of Newton and Schulz makes 4e-5. One program for
    CUDA and TPU, as of `jax.export`, cannot be made of it: TPU has no QR.
    """

    def by_qr(matrix):
        vectors, values = jax.lax.linalg.eigh(
            matrix, implementation=jax.lax.linalg.EighImplementation.QR
        )
        product = functools.partial(jnp.matmul, precision="highest")
        excess = product(vectors.T, vectors) - jnp.eye(len(values), dtype=vectors.dtype)
        return values, vectors - product(vectors, excess) / 2

    by_default = lambda matrix: tuple(jnp.linalg.eigh(matrix))
    return jax.lax.platform_dependent(matrix, cuda=by_qr, default=by_default)


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
