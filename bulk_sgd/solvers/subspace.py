"""The dominant subspace: eigenpairs, and what they say about a vector.

The k leading eigenpairs (λ_i, u_i) of a curvature matrix span the dominant subspace;
its orthogonal complement is the bulk. With U = [u_1 … u_k], P = U Uᵀ projects onto
the dominant subspace and χ_k(v) = ‖P v‖ / ‖v‖ is the alignment of a vector v with it
(Song, Ahn and Yun, *Does SGD really happen in tiny subspaces?*, arXiv 2405.16002).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.linalg import basis


class Subspace(NamedTuple):
    """Orthonormal eigenvector estimates with what is known about them.

    A row of zeros in `eigenvectors` stands for a missing direction: projections
    ignore it, so that an empty subspace projects everything to zero.

    Attributes:
      eigenvalues: `(k,)`, in order of the solver, by default descending.
      eigenvectors: pytree like the parameters with leaves `(k, *leaf.shape)` in
        float32 or wider; rows orthonormal or zero. Signs are arbitrary and vectors
        within a cluster of eigenvalues rotate freely: compare projectors, not rows.
      residuals: `(k,)`, ‖H u_i − λ_i u_i‖ as the solver estimates it.
      converged: bool scalar, whether the solver met its tolerance.
      num_matvecs: int32 scalar, curvature products spent in the last solve.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> H = jnp.diag(jnp.array([1.0, 5.0, 3.0]))
      >>> pairs = bulk_sgd.top_eigenpairs(
      ...     jax.tree_util.Partial(jnp.matmul, H), jnp.ones(3), rank=1, tol=1e-5)
      >>> print(abs(pairs.project(jnp.array([1.0, 2.0, 3.0])).round(3)))
      [0. 2. 0.]
    """

    eigenvalues: jax.Array
    eigenvectors: Any
    residuals: jax.Array
    converged: jax.Array
    num_matvecs: jax.Array

    @property
    def rank(self) -> int:
        """Number of directions k (rows, zero ones included)."""
        return self.eigenvalues.shape[0]

    @property
    def kept(self):
        """Number of rows that are not zero, an int32 scalar."""
        squares = basis.map_rows(lambda row: basis.dot(row, row), self.eigenvectors)
        return jnp.sum(squares > 0, dtype=jnp.int32)

    def coefficients(self, vector):
        """Uᵀ v, shape `(k,)`, in the working dtype."""
        return basis.inner(self.eigenvectors, basis.widen(vector))

    def project(self, vector):
        """P v, the part of `vector` in the subspace, in the working dtype."""
        return basis.combine(self.coefficients(vector), self.eigenvectors)

    def complement(self, vector):
        """v − P v, the part of `vector` in the bulk, in the working dtype."""
        wide = basis.widen(vector)
        return basis.subtract(wide, self.project(vector))

    def alignment(self, vector):
        """χ_k(v) = ‖P v‖ / ‖v‖, a scalar between 0 and 1; 0 for the zero vector."""
        return alignment(self.coefficients(vector), vector)

    def overlap(self, other: "Subspace"):
        """‖U₁ᵀ U₂‖²_F / k, between 0 (orthogonal) and 1 (equal spans).

        k is the larger number of rows that are not zero; 0 if there are none.
        """
        cosines = basis.gram(self.eigenvectors, other.eigenvectors)
        larger = jnp.maximum(jnp.maximum(self.kept, other.kept), 1)
        return jnp.sum(cosines**2) / larger


class Rows(NamedTuple):
    """Vectors that a solver keeps in its state, laid out over devices like parameters.

    Attributes:
      rows: pytree like the parameters with leaves `(m, *leaf.shape)`.
    """

    rows: Any


def alignment(coefficients, vector):
    """χ_k of a vector of which Uᵀ v is already known, a scalar."""
    length = basis.norm(vector)
    inside = jnp.linalg.norm(coefficients)
    # Rounding can leave ‖P v‖ an ulp above ‖v‖.
    ratio = jnp.minimum(inside / jnp.where(length > 0, length, 1), 1)
    return jnp.where(length == 0, 0, ratio)


def empty(params, rank: int) -> Subspace:
    """A subspace of `rank` zero rows for vectors shaped like `params`."""
    dtype = basis.working_dtype(params)
    return Subspace(
        eigenvalues=jnp.zeros(rank, dtype),
        eigenvectors=basis.zeros(params, rank, dtype),
        residuals=jnp.full(rank, jnp.inf, dtype),
        converged=jnp.zeros((), bool),
        num_matvecs=jnp.zeros((), jnp.int32),
    )


def check_solution(returned, subspace: Subspace, state):
    """Raises TypeError unless a solver returned what can replace what it was given.

    Args:
      returned: what `Solver.solve` returned.
      subspace: the previous `Subspace`.
      state: the solver's previous state.
    """
    pair = isinstance(returned, tuple) and len(returned) == 2
    if not pair or not isinstance(returned[0], Subspace):
        raise TypeError(
            f"solver.solve returned {type(returned).__name__}; it must return a pair, "
            "a bulk_sgd.Subspace and the solver's new state."
        )
    parts = zip((*Subspace._fields, "state"), (*subspace, state),
                (*returned[0], returned[1]))  # fmt: skip
    for name, old, new in parts:
        if not _replaces(new, old):
            got, wanted = (jax.tree.map(_describe, x) for x in (new, old))
            raise TypeError(
                f"solver.solve returned {name} as {got}; it must be like the one that "
                f"the solver was given, {wanted}."
            )


def _replaces(new, old) -> bool:
    if jax.tree.structure(new) != jax.tree.structure(old):
        return False
    # A Python scalar has a type that gives way.
    return all(
        jnp.shape(x) == jnp.shape(y) and jnp.result_type(x, y) == jnp.result_type(y)
        for x, y in zip(jax.tree.leaves(new), jax.tree.leaves(old))
    )


def _describe(leaf) -> str:
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"


class Solver(NamedTuple):
    """How a transform keeps its subspace up to date: a pair of pure functions.

    Attributes:
      init: `init(params, rank) -> state`, the solver's own state, a pytree of arrays.
      solve: `solve(matvec, subspace, state, updates, key) -> (subspace, state)`. It
        sees the curvature at this step (not the same function at every call), the
        previous subspace, its state, the incoming update and a key of its own for this
        step, and returns a `Subspace` of the same rank. Where `converged` is
        False or an eigenvalue or residual is not finite, the caller keeps the previous
        subspace.
      guarded: whether `solve` itself returns the previous vectors where it failed, so
        that the caller need not select between two bases at every step.
      eigenpairs: whether the result approximates eigenpairs of the curvature, for later
        updates too. `on_drift` and `adaptive` go by such pairs and refuse others.
    """

    init: Callable[[Any, int], Any]
    solve: Callable[..., tuple[Subspace, Any]]
    guarded: bool = False
    eigenpairs: bool = True


def check_solver(solver, *, eigenpairs: bool = False):
    """Raises ValueError unless `solver` is a `Solver`, of eigenpairs if needed."""
    example = "such as bulk_sgd.lanczos()."
    if not isinstance(solver, Solver):
        raise checks.ArgumentError(
            "solver", f"is {solver!r}; it must be a bulk_sgd.Solver {example}"
        )
    if eigenpairs and not solver.eigenpairs:
        name = getattr(solver.solve, "__qualname__", repr(solver.solve))
        name = name.partition(".<locals>")[0]
        raise checks.ArgumentError(
            "solver",
            f"is {name}, which keeps no eigenpairs of the curvature, or wraps what "
            f"keeps none; it must be one that does, {example}",
        )
