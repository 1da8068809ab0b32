r"""What a run measures now and then beside its losses: energies and stability.

Let g be the gradient over the training set, u = −g the direction of descent, P the
projector onto the dominant subspace of the Hessian H = G + F, and g_B, H_B the gradient
and the Hessian of a mini-batch B.

  batch sharpness     mean over B of g_Bᵀ H_B g_B / ‖g_B‖², which SGD brings to 2/η
                      (Andreyev and Beneventano, *Edge of Stochastic Stability*,
                      arXiv 2412.20553)
  quadratic forms     (Pu)ᵀ M (Pu) / ‖u‖² and (u − Pu)ᵀ M (u − Pu) / ‖u‖²
  eigenspace overlap  ‖U_Hᵀ U_G‖²_F / k
  sum rule            ‖H z − G z − F z‖ / ‖H z‖ for a random z, zero but for rounding

To these come the shares of `bulk_sgd.spectra.energies` for M = H, G and F.

With momentum β, SGD brings the batch sharpness to 2 (1 − β) / η in small batches and to
2 (1 + β) / η in large ones (Andreyev et al., *Momentum Further Constrains Sharpness at
the Edge of Stochastic Stability*, arXiv 2604.14108). A variant of this project's own
replaces g_B by the update that the optimizer makes from it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd.curvature import blocks, preconditioning
from bulk_sgd.curvature.hessian import CURVATURES, hessian
from bulk_sgd.curvature.objective import Objective
from bulk_sgd.curvature.operators import linearize, sharded
from bulk_sgd.curvature.preconditioning import preconditioned
from bulk_sgd.linalg import basis
from bulk_sgd.solvers.lanczos import top_eigenpairs
from bulk_sgd.solvers.subspace import Subspace
from bulk_sgd.spectra.along_step import directional_sharpness
from bulk_sgd.spectra.energies import Energies
from bulk_sgd.spectra.energies import energies as measure_energies
from bulk_sgd.spectra.rank_profile import rank_profile

RANKS = 1, 2, 4, 8, 16  # of the profiles by rank


class Curvatures(NamedTuple):
    """Measurements of one operator M.

    Attributes:
      energies: `energies.Energies`.
      form_dominant: scalar, (Pu)ᵀ M (Pu) / ‖u‖².
      form_bulk: scalar, (u − Pu)ᵀ M (u − Pu) / ‖u‖².
    """

    energies: Energies
    form_dominant: jax.Array
    form_bulk: jax.Array


class Measures(NamedTuple):
    """Measurements at one point of training.

    Attributes:
      curvatures: by name: "hessian", "gauss_newton" and "functional_hessian".
      eigenspace_overlap: scalar between 0 and 1, NaN where the solve on G failed.
      sum_rule_error: scalar, relative.
      batch_sharpness: scalar.
    """

    curvatures: dict[str, Curvatures]
    eigenspace_overlap: jax.Array
    sum_rule_error: jax.Array
    batch_sharpness: jax.Array


@jax.default_matmul_precision("highest")
def measure(
    params,
    subspace: Subspace,
    objective: Objective,
    batches,
    key,
    num_probes: int,
    *,
    mode: str = "auto",
    sharding=None,
    preconditioner=None,
) -> Measures:
    """Takes all measurements; about 3 (k + m + 3) products and a solve on G.

    It sends m = `num_probes` random vectors through each operator. `batches` holds a
    function from the index of a mini-batch to its `Objective`, and their number; `mode`
    is as in `bulk_sgd.hessian` and `sharding` as in `bulk_sgd.sharded`. With a
    `preconditioner` P, everything is measured in the coordinates P^½ θ:
    P^{−½} M P^{−½} replaces M, and P^{−½} g replaces g.
    """
    root = preconditioning.root(preconditioner)
    scaled = lambda matvec: preconditioned(matvec, preconditioner)
    gradient_of = lambda loss: preconditioning.divide(
        root, basis.widen(jax.grad(loss)(params))
    )
    probe_key, vector_key, solve_key = jax.random.split(key, 3)
    operators = {
        name: sharded(scaled(make(objective, params, mode=mode)), sharding)
        for name, make in CURVATURES.items()
    }
    gradient = gradient_of(objective)
    inside = subspace.project(gradient)
    outside = basis.subtract(gradient, inside)
    length = basis.norm(gradient)

    def examine(operator):
        def form(vector):
            vector = basis.scale(1 / length, vector)
            return basis.dot(vector, operator(vector))

        found = measure_energies(operator, subspace, num_probes, key=probe_key)
        return Curvatures(found, form(inside), form(outside))

    vector = basis.random_normal(vector_key, gradient)
    whole, first, second = (
        operators[name](vector)
        for name in ("hessian", "gauss_newton", "functional_hessian")
    )
    gap = basis.subtract(basis.subtract(whole, first), second)
    other = top_eigenpairs(
        operators["gauss_newton"],
        subspace,
        subspace.rank,
        tol=1e-4,  # the overlap errs by as much, over the gap to λ_{k+1}
        key=solve_key,
    )
    return Measures(
        curvatures={name: examine(operator) for name, operator in operators.items()},
        eigenspace_overlap=jnp.where(other.converged, subspace.overlap(other), jnp.nan),
        sum_rule_error=basis.norm(gap) / basis.norm(whole),
        batch_sharpness=batch_sharpness(
            *batches,
            lambda loss: scaled(hessian(loss, params, mode=mode)),
            lambda loss: [gradient_of(loss)],
        )[0],
    )


def ranks(params, subspace: Subspace) -> dict:
    """The `RankProfile` of the eigenvectors at `RANKS`, its leaves by their paths.

    Vectors and scalars, which are of rank 1, are left out.
    """
    found = rank_profile(subspace, RANKS)
    parts = zip(blocks.paths(params), *map(jax.tree.leaves, (params, found.leaves)))
    matrices = {path: shares for path, leaf, shares in parts if leaf.ndim > 1}
    return {"ranks": RANKS, "whole": found.whole, "leaves": matrices}


@jax.default_matmul_precision("highest")
def batch_sharpness(batch, num_batches: int, operator, directions):
    """The mean over mini-batches of vᵀ H_B v / ‖v‖², for each direction v.

    `batch` turns an index into a loss. From this loss, `operator` makes H_B, and
    `directions` a list of m vectors v. Returns an array `(m,)`.
    """

    def along(index):
        loss = batch(index)
        matvec = linearize(operator(loss))
        return jnp.stack([directional_sharpness(matvec, v) for v in directions(loss)])

    return jnp.mean(jax.lax.map(along, jnp.arange(num_batches)), axis=0)
