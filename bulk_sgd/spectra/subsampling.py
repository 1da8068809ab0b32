r"""How far the curvature of a sample is from the curvature of all the data.

A random sample of n of N examples gives H_n, λ̂_i, Û = [û_1 … û_k] and P̂ = Û Ûᵀ in
place of H, λ_i, U and P. To see its error, solve two halves A and B of the sample
separately. If σ² is the variance of the Hessian over examples, H_A − H_B has
variance 4 σ² / n, and H_n − H has variance σ² (1/n − 1/N). To first order in the noise
this gives, for projectors and in the same way for eigenvalues,

  E‖P̂ − P‖² = ¼ (1 − n/N) E‖P_A − P_B‖².

This is a jackknife with two groups and the correction for a finite population (Cochran,
*Sampling Techniques*, 1977). It is an estimate, not a bound. The bound of Davis and
Kahan is much larger, since it takes all noise to lie along u_{k+1}.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.curvature.hessian import CURVATURES
from bulk_sgd.curvature.objective import Objective
from bulk_sgd.curvature.operators import sharded
from bulk_sgd.curvature.preconditioning import preconditioned
from bulk_sgd.linalg import basis, units
from bulk_sgd.solvers.lanczos import top_eigenpairs


class SubsamplingError(NamedTuple):
    """Expected error of the eigenpairs of a sample.

    λ̂_i, Û and P̂ = Û Ûᵀ belong to the sample; λ_i, U and P belong to all the data.

    Attributes:
      eigenvalues: scalar, root mean square of λ̂_i − λ_i over the k eigenvalues.
      overlap: scalar between 0 and 1, ‖ÛᵀU‖²_F / k.
      projection: scalar, ‖(P̂ − P) v‖ / ‖v‖ for the given vector v.
      converged: bool, whether the solves of both halves of the sample converged; if
        not, ignore the other fields.
      num_matvecs: int32, number of products, each with half of the sample.
    """

    eigenvalues: jax.Array
    overlap: jax.Array
    projection: jax.Array
    converged: jax.Array
    num_matvecs: jax.Array


def subsampling_error(
    objective: Objective,
    params,
    vector,
    rank: int,
    num_examples: int,
    *,
    curvature: str = "hessian",
    mode: str = "auto",
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    sharding=None,
    preconditioner=None,
) -> SubsamplingError:
    """Estimates the error of a sample's eigenpairs from the sample alone.

    It compares the eigenpairs of two halves of the sample. To first order in the
    sampling noise, the root mean square of the estimated error over many samples is
    that of the true error. Along training, the two were within a factor of 1.2 of each
    other (`docs/solvers.md`). Single estimates scatter, most of all for eigenvalues,
    which average only k differences.

    Args:
      objective: an `Objective` of n examples, drawn at random without replacement, in
        random order.
      params: pytree of the parameters.
      vector: pytree like `params`, such as a gradient.
      rank: number k of leading eigenpairs.
      num_examples: number N of all examples, including those outside the sample.
      curvature: "hessian", "gauss_newton" or "functional_hessian".
      mode: as in `hessian`.
      tol: as in `top_eigenpairs`.
      max_matvecs: as in `top_eigenpairs`.
      sharding: layout of the solves over devices, as in `sharded`.
      preconditioner: P as in `preconditioned`, for eigenpairs of P^{−½} H P^{−½}.

    Returns:
      A `SubsamplingError`.

    Raises:
      TypeError: if `objective` is not an `Objective`.
      ValueError: if n < 2 or n > N, or if an argument of the solve is out of its range.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> x = jax.random.normal(jax.random.key(0), (100, 4)) * jnp.array([5, 3, 1, 1])
      >>> sample = bulk_sgd.Objective(
      ...     lambda w, x: x @ w, lambda f, y: (f - y) ** 2, x, x[:, 0])
      >>> w = jnp.ones(4)
      >>> found = bulk_sgd.subsampling_error(sample, w, w, rank=2, num_examples=1000)
      >>> print(bool(found.overlap > 0.95), bool(found.converged))
      True True
    """
    if not isinstance(objective, Objective):
        raise TypeError(
            "subsampling_error needs a bulk_sgd.Objective, whose examples it splits; "
            f"got {type(objective).__name__}."
        )
    checks.vector("vector", vector, params)
    drawn = objective.num_examples
    why = "two halves of at least one example"
    checks.integer("the number of examples of objective", drawn, 2, why=why)
    why = "the examples of objective"
    checks.integer("num_examples", num_examples, drawn, why=why)
    checks.one_of("curvature", curvature, CURVATURES)

    def solve(first):
        # Every second example: where they are split over devices, so is each half.
        half = jax.tree.map(lambda x: x[first::2], objective)
        # Groups that split the sample evenly may not split a half evenly.
        half = dataclasses.replace(half, num_groups=1)
        start = basis.random_normal(jax.random.key(first), params)
        matvec = CURVATURES[curvature](half, params, mode=mode)
        matvec = sharded(preconditioned(matvec, preconditioner), sharding)
        return top_eigenpairs(matvec, start, rank, tol, max_matvecs)

    one, other = solve(0), solve(1)
    left = (1 - drawn / num_examples) / 4
    gap = basis.subtract(one.project(vector), other.project(vector))
    length = basis.norm(vector)
    between = basis.norm(gap) / jnp.where(length > 0, length, 1)
    apart = units.length(one.eigenvalues - other.eigenvalues)
    return SubsamplingError(
        eigenvalues=jnp.sqrt(left / rank) * apart,
        overlap=1 - left * (1 - one.overlap(other)),
        projection=jnp.sqrt(left) * between,
        converged=one.converged & other.converged,
        num_matvecs=one.num_matvecs + other.num_matvecs,
    )
