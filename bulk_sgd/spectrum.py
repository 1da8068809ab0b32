r"""How the curvature is spread over the dominant subspace and the bulk.

For a symmetric operator M (the Hessian H, the Gauss-Newton matrix G or the functional
Hessian F), a dominant subspace with orthonormal rows U and projector P = UᵀU, and
Q = I − P:

  trace share       tr(U M Uᵀ) / tr M
  Frobenius share   ‖M Uᵀ‖²_F / ‖M‖²_F
  block share       ‖U M Uᵀ‖²_F / ‖M‖²_F

What lies in the subspace takes k products and is exact. The rest is estimated with m
random sign vectors z (Hutchinson, *A stochastic estimator of the trace of the influence
matrix*, 1989), projected to the bulk:

  tr M = tr(U M Uᵀ) + E zᵀ Q M Q z,   ‖M‖²_F = ‖M Uᵀ‖²_F + E ‖M Q z‖²,

so that the subspace plays the part of the sketch in Hutch++ (Meyer, Musco, Musco and
Woodruff, 2021): the large eigenvalues, which make the variance, are taken out first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import basis, curvature
from bulk_sgd.subspace import Subspace


class Energies(NamedTuple):
    """Where the curvature energy of one operator lies; scalars but the last.

    Shares are NaN where the whole is zero, as tr F is for piecewise linear networks.
    An error is the standard error of the mean over the probes of what stands before it.

    Attributes:
      trace: tr M.
      trace_error: of the trace.
      trace_dominant: tr(U M Uᵀ), exact.
      frobenius: ‖M‖²_F.
      frobenius_error: of ‖M‖²_F.
      frobenius_dominant: ‖M Uᵀ‖²_F, exact.
      frobenius_block: ‖U M Uᵀ‖²_F, exact.
      rayleigh: `(k,)`, u_iᵀ M u_i, exact.
    """

    trace: jax.Array
    trace_error: jax.Array
    trace_dominant: jax.Array
    frobenius: jax.Array
    frobenius_error: jax.Array
    frobenius_dominant: jax.Array
    frobenius_block: jax.Array
    rayleigh: jax.Array

    @property
    def trace_share(self):
        """tr(U M Uᵀ) / tr M."""
        return _share(self.trace_dominant, self.trace)

    @property
    def frobenius_share(self):
        """‖M Uᵀ‖²_F / ‖M‖²_F, between 0 and 1."""
        return _share(self.frobenius_dominant, self.frobenius)

    @property
    def block_share(self):
        """‖U M Uᵀ‖²_F / ‖M‖²_F, between 0 and the Frobenius share."""
        return _share(self.frobenius_block, self.frobenius)


def energies(matvec, subspace: Subspace, key, num_probes: int = 30) -> Energies:
    """Trace and Frobenius norm of an operator, in a subspace and as a whole.

    Args:
      matvec: symmetric linear callable from pytree to pytree, such as
        `bulk_sgd.hessian(value_fn, params)`.
      subspace: the dominant subspace, whose rows are orthonormal or zero.
      key: PRNG key of the probes.
      num_probes: number m of random vectors; k + m products in all. Static.

    Returns:
      The `Energies`, in the dtype of the basis.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> from bulk_sgd import spectrum
      >>> matvec = jax.tree_util.Partial(jnp.multiply, jnp.array([8.0, 1.0, 1.0]))
      >>> top = bulk_sgd.top_eigenpairs(matvec, jnp.ones(3), rank=1, tol=1e-5)
      >>> found = spectrum.energies(matvec, top, jax.random.key(0))
      >>> print(found.trace_share.round(3), found.frobenius_share.round(3))
      0.8 0.97
    """
    apply = curvature.linearize(matvec)
    rows = subspace.eigenvectors
    images = jax.lax.map(apply, rows)
    block = basis.gram(rows, images)
    rayleigh = jnp.diagonal(block)

    def probe(key):
        vector = subspace.complement(_signs(key, basis.row(rows, 0)))
        image = apply(vector)
        return basis.dot(vector, image), basis.dot(image, image)

    traces, squares = jax.lax.map(probe, jax.random.split(key, num_probes))
    inside = jax.tree.reduce(
        jnp.add, jax.tree.map(lambda x: jnp.vdot(x, x), images), jnp.zeros(())
    )
    return Energies(
        trace=jnp.sum(rayleigh) + jnp.mean(traces),
        trace_error=_standard_error(traces),
        trace_dominant=jnp.sum(rayleigh),
        frobenius=inside + jnp.mean(squares),
        frobenius_error=_standard_error(squares),
        frobenius_dominant=inside,
        frobenius_block=jnp.sum(block**2),
        rayleigh=rayleigh,
    )


def _signs(key, like):
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves)]
    )


def _standard_error(samples):
    return jnp.std(samples, ddof=1) / jnp.sqrt(samples.size)


def _share(part, whole):
    return jnp.where(whole == 0, jnp.nan, part / jnp.where(whole == 0, 1, whole))
