"""A solver that refreshes a subspace when its error on the updates is too large."""

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.curvature import operators
from bulk_sgd.linalg import basis, branches
from bulk_sgd.solvers.power import in_units, probe
from bulk_sgd.solvers.solver import Solver, check_solver


def on_drift(
    solver: Solver, tol: float = 0.1, *, every: int = 1, solve_every: int = 200
) -> Solver:
    """Returns a solver that calls another solver only when the basis has drifted.

    Let V = [v_1 … v_k] be the basis, Λ the diagonal matrix of its eigenvalues, H the
    present Hessian and u the incoming update. A probe takes one matvec, H V Λ⁻¹ Vᵀu.
    From it the probe estimates the error ‖(P̂ − P) P̂ u‖ / ‖P̂ u‖, where P̂ = V Vᵀ and
    P projects onto the k leading eigenvectors of H. `solver` runs if the estimate
    exceeds `tol`, if the solver has no basis yet, if an eigenvalue is zero, and at
    every `solve_every`-th call. A probe cannot see a new eigenvector that is orthogonal
    to the basis.

    Use it with `refresh_every=1`. Put it inside `adaptive` and `blockwise`, not around
    them: `adaptive` can leave no vector to probe, and with `blockwise` the coupling of
    the blocks would look like drift. In both cases `solver` would run at every call.

    Error: about `tol` for mostly dominant updates. To first order, the estimate is at
    least (1 − λ_{k+1} / λ_k) times the error. Cost: 1/`every` matvecs per step, plus
    the cost of `solver` when it runs. See `docs/solvers.md` for measurements.

    Args:
      solver: the solver to call on drift, such as `bulk_sgd.lanczos()`.
      tol: the largest estimate to accept, from 0 to 1.
      every: probe at one call in `every`; most other calls run nothing.
      solve_every: calls after which `solver` runs regardless of the probes, at least 1.
        With `lanczos`, a new dominant direction stays unseen for at most this number of
        calls. `power` has its own `solve_every`, which counts the calls of `power`.

    Returns:
      A `Solver` whose state is a pair: the state of `solver` and the number of calls.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import bulk_sgd
      >>> solver = bulk_sgd.on_drift(bulk_sgd.lanczos(), tol=0.1, every=5)
      >>> tx = bulk_sgd.project_bulk(rank=10, solver=solver)
    """
    check_solver(solver, eigenpairs=True)
    checks.between("tol", tol, 0, 1)
    checks.integer("every", every, 1)
    checks.integer("solve_every", solve_every, 1)

    def init(params, rank):
        return solver.init(params, rank), jnp.zeros((), jnp.int32)

    def solve(matvec, subspace, state, updates, key):
        inner, count = state
        known = jnp.all(subspace.eigenvalues != 0) & ((count + 1) % solve_every != 0)
        probing = known & (count % every == 0)

        def look():
            with jax.default_matmul_precision("highest"):
                _, *pair = in_units(operators.linearize(matvec), subspace)
                return probe(*pair, updates).drift

        nothing = jnp.zeros_like(subspace.eigenvalues[0])
        drift = branches.cond(probing, look, lambda: nothing)
        drift = jnp.where(probing, drift, nothing)
        kept = subspace._replace(
            converged=jnp.ones((), bool), num_matvecs=probing.astype(jnp.int32)
        )

        serves = known & (drift <= tol)  # False for NaN too

        def refresh():
            found, after = solver.solve(matvec, subspace, inner, updates, key)
            found = found._replace(num_matvecs=found.num_matvecs + probing)
            # A lane that only joins in under `vmap` keeps what it has.
            return basis.where(serves, (kept, inner), (found, after))

        found, inner = branches.cond(~serves, refresh, lambda: (kept, inner))
        return found, (inner, count + 1)

    return solver._replace(
        init=init, solve=solve, guarded=False, name="on_drift", probes=solver.probes + 1
    )
