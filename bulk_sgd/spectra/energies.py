r"""How the curvature is divided between the dominant subspace and the bulk.

Let M be the Hessian H, the Gauss-Newton matrix G or the functional Hessian F. Let the
columns of U = [u_1 … u_k] be an orthonormal basis of the dominant subspace, P = U Uᵀ
its projector, and Q = I − P. Three shares of M lie in the subspace:

  trace share       tr(Uᵀ M U) / tr M
  Frobenius share   ‖M U‖²_F / ‖M‖²_F
  block share       ‖Uᵀ M U‖²_F / ‖M‖²_F

The numerators take k products and are exact. The denominators also need the part of M
in the bulk. To estimate it, `energies` projects m random sign vectors z to the bulk
(Hutchinson, *A stochastic estimator of the trace of the influence matrix*, 1989):

  tr M = tr(Uᵀ M U) + E zᵀ Q M Q z,   ‖M‖²_F = ‖M U‖²_F + E ‖M Q z‖².

The projection removes the large eigenvalues, which cause most of the variance. Hutch++
(Meyer, Musco, Musco and Woodruff, 2021) does the same with a random sketch. `trace`
uses such a sketch, so it needs no known subspace.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.curvature.operators import as_pytree, linearize
from bulk_sgd.linalg import basis
from bulk_sgd.linalg.orthogonalization import orthonormal_range
from bulk_sgd.solvers.subspace import Subspace, empty


class Estimate(NamedTuple):
    """A mean over random probes, with its standard error.

    Attributes:
      value: the estimate.
      error: its standard error, of the same shape; NaN from a single probe.
    """

    value: jax.Array
    error: jax.Array

    @classmethod
    def of(cls, samples) -> "Estimate":
        """The mean of samples along their first axis.

        >>> import jax.numpy as jnp
        >>> value, error = Estimate.of(jnp.array([1.0, 3.0]))
        >>> float(value), float(error)
        (2.0, 1.0)
        """
        count = samples.shape[0]
        spread = jnp.std(samples, axis=0, ddof=1) if count > 1 else jnp.nan
        mean = jnp.mean(samples, axis=0)
        return cls(mean, jnp.broadcast_to(spread / count**0.5, mean.shape))

    def scale(self, factor) -> "Estimate":
        """`factor` times the estimate."""
        return Estimate(factor * self.value, abs(factor) * self.error)


class Energies(NamedTuple):
    """Trace and squared Frobenius norm of an operator M, whole and in a subspace.

    U = [u_1 … u_k] is the basis of the subspace. All fields are exact except the two
    totals and their errors. A share is NaN if its total is zero, as tr F is for
    piecewise linear networks.

    Attributes:
      trace: tr M.
      trace_error: standard error of `trace` over the probes.
      trace_dominant: tr(Uᵀ M U).
      frobenius: ‖M‖²_F.
      frobenius_error: standard error of `frobenius` over the probes.
      frobenius_dominant: ‖M U‖²_F.
      frobenius_block: ‖Uᵀ M U‖²_F.
      rayleigh: `(k,)`, u_iᵀ M u_i. The other fields are scalars.
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
        """tr(Uᵀ M U) / tr M."""
        return _share(self.trace_dominant, self.trace)

    @property
    def frobenius_share(self):
        """‖M U‖²_F / ‖M‖²_F, between 0 and 1."""
        return _share(self.frobenius_dominant, self.frobenius)

    @property
    def block_share(self):
        """‖Uᵀ M U‖²_F / ‖M‖²_F, between 0 and the Frobenius share."""
        return _share(self.frobenius_block, self.frobenius)


@jax.default_matmul_precision("highest")
def energies(matvec, subspace: Subspace, num_probes: int = 30, *, key=None) -> Energies:
    """Returns tr M and ‖M‖²_F of an operator M, as a whole and in a subspace.

    Args:
      matvec: symmetric linear callable from pytree to pytree, such as
        `bulk_sgd.hessian(value_fn, params)`.
      subspace: the dominant subspace; its rows are orthonormal or zero.
      num_probes: number m of random vectors, a Python integer; k + m products in all.
      key: PRNG key of the probes; by default a fixed one.

    Returns:
      The `Energies`, in the dtype of the basis.

    Raises:
      ValueError: if `num_probes` is not at least 1.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> matvec = jax.tree_util.Partial(jnp.multiply, jnp.array([8.0, 1.0, 1.0]))
      >>> top = bulk_sgd.top_eigenpairs(matvec, jnp.ones(3), rank=1, tol=1e-5)
      >>> found = bulk_sgd.energies(matvec, top)
      >>> print(found.trace_share.round(3), found.frobenius_share.round(3))
      0.8 0.97
    """
    checks.integer("num_probes", num_probes, 1)
    key = jax.random.key(0) if key is None else key
    return _energies(as_pytree(matvec), subspace, key, num_probes)


@functools.partial(jax.jit, static_argnames="num_probes", inline=True)
def _energies(matvec, subspace, key, num_probes):
    apply = linearize(matvec)
    rows = subspace.eigenvectors
    images = basis.map_in_turn(apply, rows)
    block = basis.gram(rows, images)
    rayleigh = jnp.diagonal(block)

    def probe(key):
        vector = subspace.complement(basis.random_signs(key, basis.row(rows, 0)))
        image = apply(vector)
        return basis.dot(vector, image), basis.dot(image, image)

    traces, squares = jax.lax.map(probe, jax.random.split(key, num_probes))
    inside = basis.dot(images, images)
    trace, square = Estimate.of(traces), Estimate.of(squares)
    return Energies(
        trace=jnp.sum(rayleigh) + trace.value,
        trace_error=trace.error,
        trace_dominant=jnp.sum(rayleigh),
        frobenius=inside + square.value,
        frobenius_error=square.error,
        frobenius_dominant=inside,
        frobenius_block=jnp.sum(block**2),
        rayleigh=rayleigh,
    )


def trace(
    matvec, params, num_probes: int = 30, sketch: int = 10, *, key=None
) -> Estimate:
    """Estimates the trace of a symmetric operator, by Hutch++ or Hutchinson's method.

    Let A be the operator and S a matrix of `sketch` random sign vectors. The range of
    A S nearly contains the eigenvectors of most large eigenvalues. The part of the
    trace in this range is exact; random sign vectors estimate the rest. This takes
    2 `sketch` + `num_probes` products, in one program.

    Args:
      matvec: symmetric linear callable from pytree to pytree.
      params: pytree of floating point arrays like the vectors of `matvec`.
      num_probes: number of random vectors; an error needs at least two.
      sketch: rank of the sketch, up to the dimension; 0 gives Hutchinson's method.
      key: PRNG key of the sketch and the probes; by default a fixed one.

    Returns:
      An `Estimate`, with the standard error over the probes.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> frame = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (50, 50)))[0]
      >>> matrix = frame * jnp.arange(50.0).at[-1].set(1e3) @ frame.T
      >>> matvec = jax.tree_util.Partial(jnp.matmul, matrix)
      >>> found, plain = (  # of 2176
      ...     bulk_sgd.trace(matvec, jnp.ones(50), sketch=rank)
      ...     for rank in (10, 0))
      >>> bool(abs(found.value - 2176) < 4 * found.error < 4 * plain.error)
      True
    """
    checks.function("matvec", matvec)
    checks.floating("params", params)
    like = basis.widen(jax.tree.map(jnp.asarray, params))
    checks.integer("num_probes", num_probes, 1)
    most = basis.size(like)
    checks.integer("sketch", sketch, 0, most, "the number of parameters")
    matvec = as_pytree(matvec)
    key = jax.random.key(0) if key is None else key
    return _trace(matvec, like, key, num_probes=num_probes, sketch=sketch)


@functools.partial(jax.jit, static_argnames=("num_probes", "sketch"))
def _trace(matvec, like, key, *, num_probes, sketch):
    with jax.default_matmul_precision("highest"):
        apply = linearize(matvec)
        sketch_key, key = jax.random.split(key)
        subspace = empty(like, max(sketch, 1))
        if sketch:
            image = lambda key: apply(basis.random_signs(key, like))
            images = jax.lax.map(image, jax.random.split(sketch_key, sketch))
            subspace = subspace._replace(eigenvectors=orthonormal_range(images))
        found = energies(apply, subspace, num_probes, key=key)
        return Estimate(found.trace, found.trace_error)


def _share(part, whole):
    return jnp.where(whole == 0, jnp.nan, part / jnp.where(whole == 0, 1, whole))
