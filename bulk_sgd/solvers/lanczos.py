"""Leading eigenpairs of a symmetric operator by Lanczos: a function and a solver."""

import jax
import jax.numpy as jnp

from bulk_sgd import checks, functions
from bulk_sgd.curvature import operators
from bulk_sgd.linalg import basis
from bulk_sgd.solvers import deflation, thick_restart
from bulk_sgd.solvers.ritz import ORDERS
from bulk_sgd.solvers.solver import Solver
from bulk_sgd.solvers.subspace import Subspace, check_subspace


def top_eigenpairs(
    matvec,
    start,
    rank: int = 10,
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    *,
    max_basis: int | None = None,
    which: str = "largest",
    repeated: bool = False,
    key=None,
) -> Subspace:
    """Returns the leading eigenpairs of a symmetric operator on pytrees.

    The solve is one compiled program, inside or outside `jit`, `scan` and `vmap`.
    Outside, calls share a program if their matvecs come from the same functions and
    have the same shapes. Each step takes one matvec and usually one orthogonalisation
    pass. Memory: `max_basis + 4` vectors and the result.

    If several eigenvalues lie within `tol · max|λ|` of each other, one Krylov sequence
    may find only one direction for all of them. A tighter `tol` separates eigenvalues
    that differ. `repeated` also finds every direction of equal eigenvalues.

    `converged` means that every returned pair is accurate, and that the solver saw no
    sign of a missing pair. It can still miss an eigenvector if the start vector is
    almost orthogonal to it. `repeated` searches again from new random vectors.
    `scripts/completeness.py` counts the pairs that a solve misses, with `repeated` and
    without.

    Args:
      matvec: symmetric linear function from a pytree to one of the same structure, such
        as `bulk_sgd.hessian(value_fn, params)`.
      start: the start vector, a pytree of floating point arrays, or, for a warm start,
        a `Subspace` from a nearby point. A random vector replaces a start that is zero
        or not finite.
      rank: number of eigenpairs k, from 1 to the dimension.
      tol: relative tolerance, at most 1. The solve has converged when all residuals
        ‖A u_i − λ_i u_i‖ are at most `tol · max|λ|`.
      max_matvecs: bound on the matvecs of one search, at least `rank`; by default
        `10 * rank + 50`. Without `repeated` there is only one search.
      max_basis: bound on the basis vectors held at once; by default `2 * rank + 10`. It
        must be at least the smallest of `rank + 2`, `max_matvecs` and the dimension.
      which: "largest" (algebraic), "smallest" (algebraic) or "magnitude".
      repeated: whether to search also in the orthogonal complement of the pairs found.
        Each search after the first finds the first eigenvalue of the complement, in the
        order of `which`, and takes about ten matvecs. The searches end once this
        eigenvalue no longer precedes the last of the k pairs by more than
        `tol · max|λ|`.
      key: PRNG key of the random directions; by default a fixed one. The directions
        depend on whether the operator spans several devices.

    Returns:
      A `Subspace` of `rank` orthonormal rows, with eigenvalues in the order of `which`.
      It is in float32, or float64 if a leaf of `start` is float64. If the operator
      returns a value that is not finite, `converged` is False and the numbers are NaN.

    Raises:
      ValueError: if an argument is out of its range, or if the pytree that `matvec`
        returns differs from its argument in structure or shapes or has a wider dtype.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> H = jnp.diag(jnp.arange(1.0, 101.0))
      >>> matvec = jax.tree_util.Partial(jnp.matmul, H)
      >>> pairs = bulk_sgd.top_eigenpairs(matvec, jnp.ones(100), rank=2, tol=1e-5)
      >>> pairs.eigenvalues.round(2).tolist(), bool(pairs.converged)
      ([100.0, 99.0], True)
    """
    warm = isinstance(start, Subspace)
    if warm:
        check_subspace("start", start)
    like = basis.row(start.eigenvectors, 0) if warm else start
    functions.check("matvec", matvec, "vector")
    checks.floating("start", like)
    like = jax.tree.map(jnp.asarray, like)
    dimension = basis.size(like)
    checks.integer("rank", rank, 1, dimension, "the number of parameters")
    checks.between("tol", tol, 0, 1)
    checks.one_of("which", which, ORDERS)
    checks.flag("repeated", repeated)
    limits = max_matvecs, max_basis
    max_matvecs, num_rows = thick_restart.bounds(rank, dimension, *limits)
    key = checks.key(key)
    solve = deflation.solve if repeated else thick_restart.solve
    found, _ = solve(
        operators.as_pytree(matvec),
        start if warm else basis.widen(like),
        key,
        tol,
        rank=rank,
        max_matvecs=max_matvecs,
        num_rows=num_rows,
        which=which,
    )
    return found


def lanczos(
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    *,
    max_basis: int | None = None,
    which: str = "largest",
    repeated: bool = False,
    warm_start: bool = True,
) -> Solver:
    """Returns a solver that runs `top_eigenpairs` to its tolerance at every refresh.

    `top_eigenpairs` explains all arguments but `warm_start`. Use `repeated` with
    `blockwise`, because blocks have repeated eigenvalues.

    Error: residuals of at most `tol · max|λ|`. Cost: 18 to 23 matvecs on an MLP of
    199,210 parameters, with rank 10 and the default tolerance.

    Args:
      warm_start: whether to start from the previous subspace, not from a random vector.

    Returns:
      A `Solver` without state.

    Raises:
      ValueError: if an argument is out of its range. Ranges that depend on the rank are
        checked at `init`.

    Example:
      >>> import bulk_sgd
      >>> tx = bulk_sgd.project_bulk(rank=10, solver=bulk_sgd.lanczos(tol=1e-2))
    """
    checks.between("tol", tol, 0, 1)
    checks.one_of("which", which, ORDERS)
    checks.flag("repeated", repeated)
    checks.flag("warm_start", warm_start)
    for name, bound in (("max_matvecs", max_matvecs), ("max_basis", max_basis)):
        if bound is not None:
            checks.integer(name, bound, 1)
    options = {"max_basis": max_basis, "which": which, "repeated": repeated}

    def init(params, rank):
        # optax.tree_map_params passes a tree without leaves.
        thick_restart.bounds(rank, basis.size(params) or rank, max_matvecs, max_basis)
        return ()

    def solve(matvec, subspace, state, updates, key):
        start_key, key = jax.random.split(key)
        start = subspace if warm_start else basis.random_normal(start_key, updates)
        found = top_eigenpairs(
            matvec, start, subspace.rank, tol, max_matvecs, key=key, **options
        )
        return found, state

    return Solver(init, solve, name="lanczos")
