"""The dominant subspace: eigenpairs, and what they say about a vector.

The k leading eigenpairs (λ_i, u_i) of a curvature matrix span the dominant subspace;
its orthogonal complement is the bulk. With U = [u_1 … u_k], P = U Uᵀ projects onto
the dominant subspace, and χ_k(v) = ‖P v‖ / ‖v‖ measures how well a vector v aligns with
it (Song, Ahn and Yun, *Does SGD really happen in tiny subspaces?*, arXiv 2405.16002).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd.linalg import basis


class Subspace(NamedTuple):
    """Estimated eigenvalues and orthonormal eigenvectors, and how good they are.

    A row of zeros in `eigenvectors` stands for a missing direction. Projections ignore
    it, so that an empty subspace projects everything to zero.

    Attributes:
      eigenvalues: `(k,)`, in the solver's order: descending by default.
      eigenvectors: pytree like the parameters with leaves `(k, *leaf.shape)`, float32
        or wider; each row has length one or zero, and rows are orthogonal. Signs are
        arbitrary, and vectors of close eigenvalues rotate freely: compare projectors,
        not rows.
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
        """The number of rows k, zero ones included."""
        return self.eigenvalues.shape[0]

    @property
    def kept(self):
        """The number of rows that are not zero, an int32 scalar."""
        squares = basis.squared_norms(self.eigenvectors)
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

        k is the larger of the two numbers of nonzero rows; without any the overlap
        is 0.
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
    """χ_k of a vector whose coefficients Uᵀ v are known, a scalar."""
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
