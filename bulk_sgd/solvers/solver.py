"""The interface of a solver, and a checked call that undoes a failed solve."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks, functions
from bulk_sgd.linalg import basis
from bulk_sgd.linalg.branches import own_lane
from bulk_sgd.solvers.subspace import Subspace


class Solver(NamedTuple):
    """A pair of pure functions that keep the subspace of a transform up to date.

    Attributes:
      init: `init(params, rank) -> state` returns the solver's own state, a pytree of
        arrays.
      solve: `solve(matvec, subspace, state, updates, key) -> (subspace, state)`. It
        takes the curvature at this step (a new function at every call), the previous
        subspace, its own state, the incoming update and a fresh PRNG key. It returns a
        `Subspace` of the same rank and its new state. The solve has failed if
        `converged` is False, or if an eigenvalue or a residual is not finite. The
        caller then keeps the previous subspace.
      guarded: whether `solve`, if it fails, itself returns the previous vectors and a
        state from which it can continue. If True, the caller need not select between
        the old basis and the new one at every step.
      eigenpairs: whether the result approximates eigenpairs of the curvature, whatever
        the update, so that it stays useful at later steps. `on_drift`, `adaptive` and
        `accelerated` require it.
      name: the name of the solver in error messages.
      zeros: `zeros(params, rank)` returns a basis whose `rank` rows are all zero, of
        the type that the solver keeps. By default it is dense.
      sweeps: products per vector until `accelerated` trusts the eigenvalues. In the
        first sweeps of `streaming` every eigenvalue is too low.
      whole: whether the pairs belong to the whole curvature, not to blocks of it.
        `accelerated` requires it.
      probes: products of a call that may only test the vectors. So many of each call
        do not count for `sweeps`.
    """

    init: Callable[[Any, int], Any]
    solve: Callable[..., tuple[Subspace, Any]]
    guarded: bool = False
    eigenpairs: bool = True
    name: str = ""
    zeros: Callable[[Any, int], Any] = basis.zeros
    sweeps: Any = 10
    whole: bool = True
    probes: int = 0


def check_solver(solver, *, eigenpairs: bool = False, whole: bool = False):
    """Raises ArgumentError unless `solver` is a `Solver`.

    If asked, it must also keep `eigenpairs`, or eigenpairs of the `whole` curvature.
    """
    example = "such as bulk_sgd.lanczos()."
    if not isinstance(solver, Solver):
        raise checks.ArgumentError(
            "solver", f"is {solver!r}; it must be a bulk_sgd.Solver {example}"
        )
    functions.check("solver.init", solver.init, "params", "rank")
    arguments = "matvec", "subspace", "state", "updates", "key"
    functions.check("solver.solve", solver.solve, *arguments)
    if eigenpairs and not solver.eigenpairs:
        keeps = (
            "keeps no eigenpairs of the curvature, or wraps a solver that keeps none"
        )
    elif whole and not solver.whole:
        keeps = "keeps no eigenpairs of the whole curvature, but of its blocks"
    else:
        return
    name = solver.name or solver.solve.__qualname__
    problem = f"is {name}, which {keeps}; it must be one that does, {example}"
    raise checks.ArgumentError("solver", problem)


class Refreshed(NamedTuple):
    """The result of a solve, or what was there before if the solve is not used."""

    subspace: Subspace
    state: Any
    usable: jax.Array  # whether the solve converged to finite numbers
    num_matvecs: jax.Array  # spent, whether usable or not


def refresh(solver: Solver, due, matvec, subspace, state, updates, key) -> Refreshed:
    """Calls a solver, and keeps the old subspace if the solve failed or was not due.

    Call it in the branch of `branches.cond(due, …)`, which under `vmap` also runs if
    only another lane is due. For the other arguments see `Solver`.
    """
    returned = solver.solve(matvec, subspace, state, updates, key)
    check_solution(returned, subspace, state)
    found, after = returned
    # A vector that is not finite shows in its eigenvalue or residual.
    finite = jnp.isfinite(found.eigenvalues) & jnp.isfinite(found.residuals)
    usable = found.converged & jnp.all(finite)
    accepted = due & usable
    new, old = (found.eigenvectors, after), (subspace.eigenvectors, state)
    # A select between two bases makes XLA copy the old one at every step. A guarded
    # solver needs none: its vectors hold even if it failed, and outside of `vmap`
    # `own_lane` is a constant.
    if not solver.guarded:
        new = basis.where(accepted, new, old)
    elif due is not True:
        new = basis.where(own_lane(due), new, old)
    rows, after = new
    kept = basis.where(accepted, found, subspace)._replace(eigenvectors=rows)
    return Refreshed(kept, after, usable, found.num_matvecs)


def check_solution(returned, subspace: Subspace, state):
    """Raises TypeError unless a solver returned a new `subspace` and `state`."""
    pair = isinstance(returned, tuple) and len(returned) == 2
    if not pair or not isinstance(returned[0], Subspace):
        raise TypeError(
            f"solver.solve returned {type(returned).__name__}; it must return a pair, "
            "a bulk_sgd.Subspace and the solver's new state."
        )
    names = *Subspace._fields, "state"
    pairs = zip(names, (*subspace, state), (*returned[0], returned[1]))
    for name, old, new in pairs:
        if not _replaces(new, old):
            got, wanted = (jax.tree.map(_describe, x) for x in (new, old))
            raise TypeError(
                f"solver.solve returned {name} as {got}; it must be like the one that "
                f"the solver was given, {wanted}."
            )


def _replaces(new, old) -> bool:
    if jax.tree.structure(new) != jax.tree.structure(old):
        return False
    # A Python scalar takes the dtype of what it replaces.
    return all(
        jnp.shape(x) == jnp.shape(y) and jnp.result_type(x, y) == jnp.result_type(y)
        for x, y in zip(jax.tree.leaves(new), jax.tree.leaves(old))
    )


def _describe(leaf) -> str:
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
