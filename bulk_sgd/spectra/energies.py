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
from jax.flatten_util import ravel_pytree

from bulk_sgd import checks, functions
from bulk_sgd.curvature.operators import as_pytree, linearize
from bulk_sgd.linalg import basis, units
from bulk_sgd.linalg.orthogonalization import orthonormal_range
from bulk_sgd.solvers.subspace import Subspace, check_subspace, empty


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
        mean = jnp.mean(samples, axis=0, keepdims=True)
        spread = units.length(samples - mean, 0)
        freedom = count * (count - 1) or jnp.nan
        return cls(mean[0], spread / freedom**0.5)

    def plus(self, known) -> "Estimate":
        """The estimate plus a number without error."""
        return Estimate(self.value + known, self.error)

    def scale(self, factor) -> "Estimate":
        """`factor` times the estimate."""
        return Estimate(factor * self.value, abs(factor) * self.error)


class Energies(NamedTuple):
    """Trace and squared Frobenius norm of an operator M, whole and in a subspace.

    U = [u_1 … u_k] is the basis of the subspace. The totals and the shares are
    estimates; the other fields are exact. A share is NaN if its estimated
    total and the error of that total are zero, as for M = 0. Squares outside the range
    of the dtype become zero or infinite; the shares stay correct.

    A share divides an exact part p, such as tr(Uᵀ M U), by an estimated total T̂ with
    standard error e. On average, p / T̂ is too large, most of all for small totals.
    Shares are therefore p T̂ / (T̂² + e²), which has no bias to first order, and is
    close to zero if |T̂| is far below e. The error of a share is |p| e / (T̂² − e²),
    half the difference between p / (T̂ − e) and p / (T̂ + e). It is infinite if
    |T̂| ≤ e: the share is unknown.

    Attributes:
      trace: tr M.
      trace_error: standard error of `trace`.
      trace_dominant: tr(Uᵀ M U).
      frobenius: ‖M‖²_F.
      frobenius_error: standard error of `frobenius`.
      frobenius_dominant: ‖M U‖²_F.
      frobenius_block: ‖Uᵀ M U‖²_F.
      rayleigh: `(k,)`, u_iᵀ M u_i. The other fields are scalars.
      trace_share: tr(Uᵀ M U) / tr M.
      trace_share_error: its standard error.
      frobenius_share: ‖M U‖²_F / ‖M‖²_F, between 0 and 1.
      frobenius_share_error: its standard error.
      block_share: ‖Uᵀ M U‖²_F / ‖M‖²_F, between 0 and the Frobenius share.
      block_share_error: its standard error.
    """

    trace: jax.Array
    trace_error: jax.Array
    trace_dominant: jax.Array
    frobenius: jax.Array
    frobenius_error: jax.Array
    frobenius_dominant: jax.Array
    frobenius_block: jax.Array
    rayleigh: jax.Array
    trace_share: jax.Array
    trace_share_error: jax.Array
    frobenius_share: jax.Array
    frobenius_share_error: jax.Array
    block_share: jax.Array
    block_share_error: jax.Array


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
      ValueError: if `num_probes` is below 1, or `subspace` is not a `Subspace`.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> matvec = jax.tree_util.Partial(jnp.multiply, jnp.array([8.0, 1.0, 1.0]))
      >>> top = bulk_sgd.top_eigenpairs(matvec, jnp.ones(3), rank=1, tol=1e-5)
      >>> found = bulk_sgd.energies(matvec, top)
      >>> print(found.trace_share.round(3), found.frobenius_share.round(3))
      0.8 0.97
    """
    functions.check("matvec", matvec, "vector")
    check_subspace("subspace", subspace)
    checks.integer("num_probes", num_probes, 1)
    return _energies(as_pytree(matvec), subspace, checks.key(key), num_probes)


@functools.partial(jax.jit, static_argnames="num_probes", inline=True)
def _energies(matvec, subspace, key, num_probes):
    apply = linearize(matvec)
    rows = subspace.eigenvectors

    def image(vector):
        found = apply(vector)
        return found, basis.norm(found)

    def probe(key):
        vector = subspace.complement(basis.random_signs(key, basis.row(rows, 0)))
        found, length = image(vector)
        return basis.dot(vector, found), length

    images, inside = basis.map_in_turn(image, rows)
    traces, outside = jax.lax.map(probe, jax.random.split(key, num_probes))
    block = basis.gram(rows, images)
    rayleigh = jnp.diagonal(block)
    trace = Estimate.of(traces).plus(jnp.sum(rayleigh))
    # Squares, in a unit near the longest image.
    unit = units.power_of_two(units.largest((inside, outside)))
    dominant = jnp.sum((inside / unit) ** 2)
    corner = jnp.sum((block / unit) ** 2)
    square = Estimate.of((outside / unit) ** 2).plus(dominant)
    restored = lambda square: unit * (unit * square)
    trace_share = _share(jnp.sum(rayleigh), trace)
    frobenius_share, block_share = (_share(part, square) for part in (dominant, corner))
    return Energies(
        trace=trace.value,
        trace_error=trace.error,
        trace_dominant=jnp.sum(rayleigh),
        frobenius=restored(square.value),
        frobenius_error=restored(square.error),
        frobenius_dominant=restored(dominant),
        frobenius_block=restored(corner),
        rayleigh=rayleigh,
        trace_share=trace_share.value,
        trace_share_error=trace_share.error,
        frobenius_share=frobenius_share.value,
        frobenius_share_error=frobenius_share.error,
        block_share=block_share.value,
        block_share_error=block_share.error,
    )


def _share(part, whole: Estimate) -> Estimate:
    """The share of an exactly known part in a whole; `Energies` explains it."""
    blur = jnp.where(jnp.isnan(whole.error), 0, whole.error)  # of one probe
    unit = units.power_of_two(units.largest((part, whole.value, blur)))
    part, blur, total, error = (x / unit for x in (part, blur, *whole))
    scale = total**2 + blur**2
    nonzero = jnp.where(scale == 0, 1, scale)
    clear = jnp.abs(total) > error
    gap = jnp.where(clear, (total - error) * (total + error), 1)
    value = jnp.where(scale == 0, jnp.nan, part * total / nonzero)
    stated = jnp.where(clear, jnp.abs(part) * error / gap, jnp.inf)
    return Estimate(value, jnp.where(jnp.isnan(error + value), jnp.nan, stated))


def trace(
    matvec, params, num_probes: int = 30, sketch: int | None = None, *, key=None
) -> Estimate:
    """Estimates the trace of a symmetric operator, by Hutch++ or Hutchinson's method.

    Let A be the operator and S a matrix of `sketch` random sign vectors. The range of
    A S nearly contains the eigenvectors of most large eigenvalues. The part of the
    trace in this range is exact; random sign vectors estimate the rest. This takes
    2 `sketch` + `num_probes` products, in one program. If you differentiate the
    result, the range of A S counts as constant. The derivative is then an unbiased
    estimate of the derivative of the trace.

    Args:
      matvec: symmetric linear callable from pytree to pytree.
      params: pytree of floating point arrays like the vectors of `matvec`.
      num_probes: number of random vectors; an error needs at least two.
      sketch: rank of the sketch, from 0 (Hutchinson's method) to the dimension (the
        exact trace); by default 10, or the dimension if that is less.
      key: PRNG key of the sketch and the probes; by default a fixed one.

    Returns:
      An `Estimate`: the trace and its standard error.

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
    functions.check("matvec", matvec, "vector")
    checks.floating("params", params)
    like = basis.widen(jax.tree.map(jnp.asarray, params))
    checks.integer("num_probes", num_probes, 1)
    most = basis.size(like)
    sketch = min(10, most) if sketch is None else sketch
    checks.integer("sketch", sketch, 0, most, "the number of parameters")
    matvec = as_pytree(matvec)
    key = checks.key(key)
    return _trace(matvec, like, key, num_probes=num_probes, sketch=sketch)


@functools.partial(jax.jit, static_argnames=("num_probes", "sketch"))
def _trace(matvec, like, key, *, num_probes, sketch):
    with jax.default_matmul_precision("highest"):
        apply = linearize(matvec)
        sketch_key, key = jax.random.split(key)
        subspace = empty(like, max(sketch, 1))
        if sketch == basis.size(like):  # random signs could span less
            rows = jax.vmap(ravel_pytree(like)[1])(jnp.eye(sketch))
            subspace = subspace._replace(eigenvectors=basis.cast_like(rows, like))
        elif sketch:
            image = lambda key: apply(basis.random_signs(key, like))
            images = jax.lax.map(image, jax.random.split(sketch_key, sketch))
            # Held fixed: where eigenvalues repeat, as 0 does beyond the rank of A, eigh
            # has no derivative.
            rows = orthonormal_range(jax.lax.stop_gradient(images))
            subspace = subspace._replace(eigenvectors=rows)
        found = energies(apply, subspace, num_probes, key=key)
        return Estimate(found.trace, found.trace_error)
