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

`trace` does without a known subspace: its sketch is random. `block_eigenpairs` looks at
the parameters block by block.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import basis, blocks, checks, curvature, masking
from bulk_sgd.solvers.lanczos import top_eigenpairs
from bulk_sgd.subspace import Subspace, empty


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


def trace(matvec, params, key, num_probes: int = 30, sketch: int = 10) -> Estimate:
    """The trace of a symmetric operator, by Hutch++ or Hutchinson's estimator.

    The range of A S, for S of `sketch` random sign vectors, takes out most of what is
    large in A; its part is exact, and what is left is estimated with random signs.
    One compiled program of 2 `sketch` + `num_probes` products.

    Args:
      matvec: symmetric linear callable from pytree to pytree.
      params: pytree of floating point arrays like the vectors of `matvec`.
      key: PRNG key of the sketch and the probes.
      num_probes: number of random vectors; an error takes two.
      sketch: rank of the sketch, up to the dimension; 0 is Hutchinson's estimator.

    Returns:
      An `Estimate`, whose error is that of the probes.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> frame = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (50, 50)))[0]
      >>> matrix = frame * jnp.arange(50.0).at[-1].set(1e3) @ frame.T
      >>> matvec = jax.tree_util.Partial(jnp.matmul, matrix)
      >>> found, plain = (  # of 2176
      ...     bulk_sgd.trace(matvec, jnp.ones(50), jax.random.key(1), sketch=rank)
      ...     for rank in (10, 0))
      >>> bool(abs(found.value - 2176) < 4 * found.error < 4 * plain.error)
      True
    """
    checks.floating("params", params)
    like = basis.widen(jax.tree.map(jnp.asarray, params))
    checks.integer("num_probes", num_probes, 1)
    most = basis.size(like)
    checks.integer("sketch", sketch, 0, most, "the number of parameters")
    matvec = curvature.as_pytree(matvec)
    return _trace(matvec, like, key, num_probes=num_probes, sketch=sketch)


@functools.partial(jax.jit, static_argnames=("num_probes", "sketch"))
def _trace(matvec, like, key, *, num_probes, sketch):
    with jax.default_matmul_precision("highest"):
        apply = curvature.linearize(matvec)
        sketch_key, key = jax.random.split(key)
        subspace = empty(like, max(sketch, 1))
        if sketch:
            image = lambda key: apply(_signs(key, like))
            images = jax.lax.map(image, jax.random.split(sketch_key, sketch))
            subspace = subspace._replace(eigenvectors=_range(images))
        found = energies(apply, subspace, key, num_probes)
        return Estimate(found.trace, found.trace_error)


def _range(rows):
    """Orthonormal rows that span those given, as far as rounding tells them apart.

    What does not stand out of rounding becomes a row of zeros: Cholesky would make
    of it rows that are not orthogonal (Stathopoulos and Wu, *A block orthogonalization
    procedure with constant synchronization requirements*, 2002).
    """
    for _ in range(2):  # twice is enough
        values, vectors = jnp.linalg.eigh(basis.gram(rows, rows))
        floor = len(values) * jnp.finfo(values.dtype).eps * values[-1]
        factors = jnp.where(values > floor, jax.lax.rsqrt(values), 0)
        rows = basis.combine((vectors * factors).T, rows)
    return rows


def block_eigenpairs(
    matvec, params, rank: int = 1, tol: float = 1e-3, *, by: blocks.By = None, key=None
) -> dict[str, Subspace]:
    """Leading eigenpairs of the diagonal blocks of a symmetric operator.

    With the Hessian these are the sharpest directions of one layer while the others
    stand still. One compiled program per block: `top_eigenpairs` on `matvec` restricted
    to it, and on what that leaves over until nothing larger is found. A single Krylov
    sequence sees a repeated eigenvalue once, and blocks do have them: under squared
    error those of the last layer occur once per output.

    Args:
      matvec: symmetric linear callable on pytrees like `params`.
      params: pytree of floating point arrays.
      rank: number of eigenpairs of each block; a block of fewer parameters has as many
        as parameters.
      tol: as in `top_eigenpairs`, relative to the largest eigenvalue of the block.
      by: how leaves make blocks, by layer if None; see `bulk_sgd.blocks`.
      key: PRNG key of the start vectors; by default a fixed one.

    Returns:
      A `Subspace` for each block, by its name. Its vectors are like
      `masking.select(params, mask)`: the params with None outside of the block.

    Raises:
      ValueError: if an argument is out of its range, or `by` is no grouping.

    Example:
      >>> import jax.numpy as jnp, bulk_sgd
      >>> params = {"a": jnp.ones(2), "b": jnp.ones(1)}
      >>> loss = lambda p: 2 * jnp.sum(p["a"] ** 2) + 3 * p["a"][0] * p["b"][0] ** 2
      >>> found = bulk_sgd.block_eigenpairs(bulk_sgd.hessian(loss, params), params)
      >>> {name: pairs.eigenvalues.tolist() for name, pairs in found.items()}
      {'a': [4.0], 'b': [6.0]}
    """
    checks.floating("params", params)
    checks.integer("rank", rank, 1)
    key = jax.random.key(0) if key is None else key
    found = {}
    for name, mask in blocks.masks(params, by).items():
        key, start_key = jax.random.split(key)
        block = masking.select(params, mask)
        found[name] = _leading(
            blocks.restrict(matvec, params, mask),
            basis.random_normal(start_key, block),
            key,
            tol,
            rank=min(rank, basis.size(block)),
        )
    return found


@functools.partial(jax.jit, static_argnames="rank")
def _leading(matvec, start, key, tol, *, rank):
    """`top_eigenpairs` that sees a repeated eigenvalue as often as it occurs."""
    apply = curvature.linearize(matvec)
    key, solve_key = jax.random.split(key)
    found = top_eigenpairs(apply, start, rank, tol, key=solve_key)
    if rank == basis.size(start):
        return found
    like = basis.row(found.eigenvectors, 0)

    def left_over(found, key):
        """The largest eigenpair of what is orthogonal to those found."""
        size = jnp.max(jnp.abs(found.eigenvalues))

        def deflated(vector):
            inside = found.project(vector)
            image = found.complement(apply(basis.subtract(vector, inside)))
            # Moved down, lest they be the largest where all others are negative.
            return basis.subtract(image, basis.scale(size, inside))

        start_key, key = jax.random.split(key)
        start = found.complement(basis.random_normal(start_key, like))
        return top_eigenpairs(deflated, start, 1, tol, key=key)

    def missed(carry):
        found, other, _ = carry
        slack = tol * jnp.max(jnp.abs(found.eigenvalues))
        return other.eigenvalues[0] > found.eigenvalues[-1] + slack

    def insert(carry):
        found, other, key = carry
        order = jnp.argsort(
            found.eigenvalues.at[-1].set(other.eigenvalues[0]), descending=True
        )

        def merge(x, y):
            return x.at[-1].set(y[0])[order]

        found = Subspace(
            eigenvalues=merge(found.eigenvalues, other.eigenvalues),
            eigenvectors=jax.tree.map(merge, found.eigenvectors, other.eigenvectors),
            residuals=merge(found.residuals, other.residuals),
            converged=found.converged & other.converged,
            num_matvecs=found.num_matvecs + other.num_matvecs,
        )
        key, solve_key = jax.random.split(key)
        return found, left_over(found, solve_key), key

    key, solve_key = jax.random.split(key)
    carry = found, left_over(found, solve_key), key
    found, other, _ = jax.lax.while_loop(missed, insert, carry)
    return found._replace(
        converged=found.converged & other.converged,
        num_matvecs=found.num_matvecs + other.num_matvecs,
    )


def _signs(key, like):
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves)]
    )


def _share(part, whole):
    return jnp.where(whole == 0, jnp.nan, part / jnp.where(whole == 0, 1, whole))
