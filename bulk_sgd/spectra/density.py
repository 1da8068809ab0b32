r"""Spectral density by stochastic Lanczos quadrature.

The spectral density of a symmetric n × n matrix A has weight 1/n at each eigenvalue. A
random unit vector v = Σ_i c_i u_i has a spectral measure with weight c_i² at λ_i, and
the mean of this measure over v is the density. The m-point Gauss quadrature of the
measure comes from m steps of Lanczos from v: its nodes are the eigenvalues of the
tridiagonal matrix T, and its weights are the squared first entries of its eigenvectors.
The quadrature is exact for polynomials up to degree 2m − 1 (Golub and Welsch, 1969).
The estimate is the mean over several v: Lin, Saad and Yang, *Approximating spectral
densities of large matrices*, SIAM Review 58, 2016; Ghorbani, Krishnan and Xiao, *An
investigation into neural net optimization via Hessian eigenvalue density*, ICML 2019.

Every new vector is orthogonalised against all vectors before it. Otherwise T would have
copies of the outer eigenvalues, with wrong weights. If the Krylov space of v is
exhausted early, its quadrature is complete. The remaining nodes, which static shapes
demand, lie within the spectrum with weight zero.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bulk_sgd import checks, functions
from bulk_sgd.curvature.operators import as_pytree, linearize
from bulk_sgd.linalg import basis, units
from bulk_sgd.linalg.orthogonalization import orthogonalize
from bulk_sgd.solvers.ritz import ROUNDING_UNITS
from bulk_sgd.spectra.energies import Estimate


class SpectralDensity(NamedTuple):
    """The eigenvalues of an operator as a probability measure on the line.

    `mean(f)` estimates the mean of f(λ) over all eigenvalues. Its error is the larger
    of two standard errors over the r probes. One is from the scatter of the probes,
    which is unreliable if few eigenvalues dominate the mean. The other is
    √(2 Var f(λ) / ((n + 2) r)); it follows from the known distribution of a random unit
    vector's squared components along the eigenvectors. Var is the variance over the
    estimated density.

    Errors do not include the blur of the quadrature: m nodes per probe cannot resolve
    features narrower than 1/m of the range. The ends are sharper, since Lanczos
    converges there first.

    Attributes:
      nodes: `(probes, steps)`, ascending in each row.
      weights: `(probes, steps)`, each row sums to one.
      dimension: n, the number of eigenvalues.
      num_matvecs: int32 scalar, number of products.
    """

    nodes: jax.Array
    weights: jax.Array
    dimension: int
    num_matvecs: jax.Array

    def mean(self, fn) -> Estimate:
        """Returns the mean of a function over all eigenvalues, tr f(A) / n.

        `fn` works elementwise and may add axes on the right.
        """
        functions.check("fn", fn, "nodes")
        values = fn(self.nodes)
        functions.returned("fn", values, "one array of real numbers")
        if jnp.shape(values)[:2] != self.nodes.shape:
            shape = jnp.shape(values)
            problem = f"returned the shape {shape}; it must work elementwise."
            raise checks.ArgumentError("fn", problem)
        weights = self.weights.reshape(
            self.weights.shape + (1,) * (values.ndim - self.weights.ndim)
        )
        found = Estimate.of(jnp.sum(weights * values, axis=1))
        gaps = values - jnp.expand_dims(found.value, (0, 1))
        unit = units.power_of_two(jnp.max(jnp.abs(gaps), axis=(0, 1), keepdims=True))
        variance = jnp.sum(weights * (gaps / unit) ** 2, axis=(0, 1)) / len(values)
        known = jnp.sqrt(2 * variance / ((self.dimension + 2) * len(values)))
        return found._replace(error=jnp.maximum(found.error, known * unit[0, 0]))

    @property
    def trace(self) -> Estimate:
        """tr A."""
        return self.mean(lambda x: x).scale(self.dimension)

    @property
    def frobenius(self) -> Estimate:
        """The squared Frobenius norm ‖A‖²_F; squares can overflow or underflow."""
        return self.mean(jnp.square).scale(self.dimension)

    @property
    def width(self):
        """Default width of the smoothing, 1/100 of the range of the nodes."""
        return (jnp.max(self.nodes) - jnp.min(self.nodes)) / 100

    def density(self, points, width=None) -> Estimate:
        """Returns the density at points `(p,)`, with each node replaced by a Gaussian.

        The integral over the line is one. `width` is the standard deviation of the
        Gaussians, by default the property `width`.
        """
        points = checks.reals("points", points, 0, 1)
        width = self.width if width is None else width
        checks.at_least("width", width, 0)
        width = jnp.maximum(width, jnp.finfo(self.nodes.dtype).tiny)

        def gaussians(nodes):
            z = (jnp.expand_dims(points, (0, 1)) - nodes[..., None]) / width
            return jnp.exp(-(z**2) / 2) / (width * jnp.sqrt(2 * jnp.pi))

        return self.mean(gaussians)

    def distribution(self, points) -> Estimate:
        """Returns the share of eigenvalues at or below each of the points `(p,)`."""
        points = checks.reals("points", points, 0, 1)
        points = jnp.expand_dims(points, (0, 1))
        return self.mean(lambda nodes: nodes[..., None] <= points)

    def quantile(self, levels) -> Estimate:
        """Returns the smallest node at which the share of eigenvalues reaches a level.

        Levels ℓ `(p,)` are from 0 to 1. The error is half the distance between the
        quantiles at ℓ + e and ℓ − e, with e the error of `distribution` at the result.
        """
        levels = checks.reals("levels", levels, 0, 1)
        if not isinstance(levels, jax.core.Tracer):
            for level in np.ravel(levels).tolist():
                checks.between("a level", level, 0, 1)
        order = jnp.argsort(self.nodes.ravel())
        nodes = self.nodes.ravel()[order]
        shares = jnp.cumsum(self.weights.ravel()[order]) / self.nodes.shape[0]

        def invert(levels):
            # Rounding can leave the last share an ulp below one.
            index = jnp.searchsorted(shares, jnp.minimum(levels, shares[-1]))
            return nodes[index]

        found = invert(levels)
        error = self.distribution(found).error
        half = (invert(levels + error) - invert(jnp.maximum(levels - error, 0))) / 2
        return Estimate(found, jnp.where(jnp.isnan(error), jnp.nan, half))


def spectral_density(
    matvec, params, num_probes: int = 10, num_steps: int | None = None, *, key=None
) -> SpectralDensity:
    """Estimates the spectral density of a symmetric operator by Lanczos quadrature.

    One compiled program, inside or outside `jit`. Outside, calls share it if their
    matvecs come from the same functions and have the same shapes. Work: up to
    `num_probes * num_steps` matvecs. Memory: `num_steps + 4` vectors.

    Args:
      matvec: symmetric linear callable from pytree to pytree, such as
        `bulk_sgd.hessian(value_fn, params)`.
      params: pytree of floating point arrays like the vectors of `matvec`.
      num_probes: number of random start vectors; errors need at least two.
      num_steps: nodes per probe, up to the dimension; by default 80, or the dimension
        if that is less.
      key: PRNG key of the probes; by default a fixed one.

    Returns:
      A `SpectralDensity` in float32, or float64 if a leaf is float64. The row of a
      probe is NaN if one of its products was not finite.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> diagonal = jnp.concatenate([jnp.linspace(0, 1, 198), jnp.full(2, 9.0)])
      >>> matvec = jax.tree_util.Partial(jnp.multiply, diagonal)
      >>> found = bulk_sgd.spectral_density(matvec, jnp.ones(200))
      >>> value, error = found.trace  # 99 + 18
      >>> bool(abs(value - 117) < 3 * error), int(found.num_matvecs)
      (True, 800)
      >>> bool(abs(found.quantile(jnp.array([0.5])).value[0] - 0.5) < 0.05)
      True
    """
    functions.check("matvec", matvec, "vector")
    checks.floating("params", params)
    like = basis.widen(jax.tree.map(jnp.asarray, params))
    dimension = basis.size(like)
    if num_steps is None:
        num_steps = min(80, dimension)
    checks.integer("num_probes", num_probes, 1)
    checks.integer("num_steps", num_steps, 1, dimension, "the number of parameters")
    nodes, weights, spent = _quadratures(
        as_pytree(matvec),
        like,
        checks.key(key),
        num_probes=num_probes,
        num_steps=num_steps,
    )
    return SpectralDensity(nodes, weights, dimension, spent)


class _State(NamedTuple):
    """A Lanczos decomposition of m steps from one start vector in progress."""

    unit: jax.Array  # of the entries of T, `units.measured`
    rows: Any  # m + 1, zero where not reached
    diagonal: jax.Array  # (m,), the diagonal of T
    off_diagonal: jax.Array  # (m,), the entries of T next to it, and one more
    size: jax.Array  # steps taken
    complete: jax.Array  # whether the Krylov space is exhausted or a value not finite


@functools.partial(jax.jit, static_argnames=("num_probes", "num_steps"))
def _quadratures(matvec, like, key, *, num_probes, num_steps):
    with jax.default_matmul_precision("highest"):
        apply = linearize(matvec)

        def probe(key):
            start = basis.unit(basis.random_normal(key, like))
            return _quadrature(apply, start, num_steps)

        keys = jax.random.split(key, num_probes)
        nodes, weights, sizes = jax.lax.map(probe, keys)
        return nodes, weights, jnp.sum(sizes)


def _quadrature(apply, start, num_steps):
    """Nodes, weights and number of steps of one start vector."""
    dtype = basis.working_dtype(start)
    initial = _State(
        unit=jnp.zeros((), dtype),
        rows=basis.set_row(basis.zeros(start, num_steps + 1), 0, start),
        diagonal=jnp.zeros(num_steps, dtype),
        off_diagonal=jnp.zeros(num_steps, dtype),
        size=jnp.zeros((), jnp.int32),
        complete=jnp.zeros((), bool),
    )

    def step(state):
        product = apply(basis.row(state.rows, state.size))
        product, unit = units.measured(product, state.unit)
        product, along = orthogonalize(product, state.rows)
        diagonal = state.diagonal.at[state.size].set(along[state.size])
        beta = jnp.sqrt(basis.dot(product, product))
        magnitude = jnp.max(jnp.abs(diagonal)) + jnp.max(state.off_diagonal)
        rounding = ROUNDING_UNITS * jnp.finfo(dtype).eps * magnitude
        complete = ~(beta > rounding)  # also where it is not a number
        fresh = basis.scale(1 / jnp.where(complete, 1, beta), product)
        return _State(
            unit=unit,
            rows=basis.set_row(state.rows, state.size + 1, fresh),
            diagonal=diagonal,
            off_diagonal=state.off_diagonal.at[state.size].set(
                jnp.where(complete, 0, beta)
            ),
            size=state.size + 1,
            complete=complete,
        )

    state = jax.lax.while_loop(
        lambda state: ~state.complete & (state.size < num_steps), step, initial
    )
    reached = jnp.arange(num_steps) < state.size
    # Filled with a Rayleigh quotient, which lies within the spectrum, uncoupled.
    diagonal = jnp.where(reached, state.diagonal, state.diagonal[0])
    above = jnp.diag(state.off_diagonal[:-1], 1)
    projected = jnp.diag(diagonal) + above + above.T
    finite = jnp.all(jnp.isfinite(projected))
    nodes, vectors = jnp.linalg.eigh(jnp.where(finite, projected, 0))
    nodes *= jnp.where(state.unit == 0, 1, state.unit)
    nodes, weights = (
        jnp.where(finite, x, jnp.nan) for x in (nodes, jnp.square(vectors[0]))
    )
    return nodes, weights, state.size
