r"""How far the curvature of a sample is from that of all the data.

Of N examples a random n give the subspace P̂ and eigenvalues λ̂ of H_n in place of those
of H. What that costs shows between two disjoint halves A and B of the sample, solved
apart: the variance of H_A − H_B is 4 σ² / n, that of H_n − H is σ² (1/n − 1/N), so that
to first order in the noise, for eigenvalues as for projectors,

  E‖P̂ − P‖² = ¼ (1 − n/N) E‖P_A − P_B‖².

This is a jackknife with two groups, with the correction for a finite population
(Cochran, *Sampling Techniques*, 1977). Unlike the bound of Davis and Kahan, which takes
all of the noise for noise along u_{k+1}, it is no bound, and as near to the truth from
above as from below.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.curvature.hessian import CURVATURES
from bulk_sgd.curvature.objective import Objective
from bulk_sgd.curvature.operators import sharded
from bulk_sgd.linalg import basis
from bulk_sgd.solvers.lanczos import top_eigenpairs


class SubsamplingError(NamedTuple):
    """Expected distance of the leading eigenpairs of a sample from those of all data.

    Attributes:
      eigenvalues: scalar, root mean square over k of λ̂_i − λ_i.
      overlap: scalar between 0 and 1, ‖ÛᵀU‖²_F / k.
      projection: scalar, ‖(P̂ − P) v‖ / ‖v‖ of the vector.
      converged: bool, whether both solves did; else the rest says nothing.
      num_matvecs: int32, products with half of the sample.
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
) -> SubsamplingError:
    """Estimates what the curvature of a sample misses, without the rest of the data.

    Two solves, each on one half of the sample; see above for how they compare. Over
    samples the root mean square is within a factor of 1.5 of the truth (measured along
    training in `docs/solvers.md`), and low rather than high for small ones, whose noise
    is not of first order. That of a single sample is a draw: of k differences for the
    eigenvalues, of many more for the rest.

    Args:
      objective: of n examples drawn at random without replacement, in random order.
      params: pytree of the parameters.
      vector: pytree like them, such as a gradient.
      rank: number of leading eigenvectors k.
      num_examples: N, of which n were drawn.
      curvature: "hessian", "gauss_newton" or "functional_hessian".
      mode: as in `hessian`.
      tol: as in `top_eigenpairs`.
      max_matvecs: as in `top_eigenpairs`.
      sharding: layout of the solves over devices, as in `sharded`.

    Returns:
      A `SubsamplingError`.

    Raises:
      TypeError: if `objective` is not an `Objective`.
      ValueError: if there are fewer than two examples, or fewer in all, or an argument
        of the solve is out of its range.

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
    drawn = objective.num_examples
    why = "two halves of at least one example"
    checks.integer("the number of examples of objective", drawn, 2, why=why)
    why = "those of objective"
    checks.integer("num_examples", num_examples, drawn, why=why)
    checks.one_of("curvature", curvature, CURVATURES)

    def solve(first):
        # Every second one: where examples are split over devices, so is the half.
        inputs, targets = jax.tree.map(
            lambda x: x[first::2], (objective.inputs, objective.targets)
        )
        # Groups that split the sample evenly need not split a half.
        half = dataclasses.replace(
            objective, inputs=inputs, targets=targets, num_groups=1
        )
        start = basis.random_normal(jax.random.key(first), params)
        matvec = sharded(CURVATURES[curvature](half, params, mode=mode), sharding)
        return top_eigenpairs(matvec, start, rank, tol, max_matvecs)

    one, other = solve(0), solve(1)
    left = (1 - drawn / num_examples) / 4
    gap = basis.subtract(one.project(vector), other.project(vector))
    length = basis.norm(vector)
    between = basis.norm(gap) / jnp.where(length > 0, length, 1)
    squares = jnp.mean((one.eigenvalues - other.eigenvalues) ** 2)
    return SubsamplingError(
        eigenvalues=jnp.sqrt(left * squares),
        overlap=1 - left * (1 - one.overlap(other)),
        projection=jnp.sqrt(left) * between,
        converged=one.converged & other.converged,
        num_matvecs=one.num_matvecs + other.num_matvecs,
    )
