"""The dominant subspace, and the part of a vector that lies in it.

The k leading eigenvectors u_i of a curvature matrix span the dominant subspace; its
orthogonal complement is the bulk. With U = [u_1 … u_k], the matrix P = U Uᵀ projects
onto the dominant subspace. The alignment χ_k(v) = ‖P v‖ / ‖v‖ is the share of the
length of v that lies in it (Song, Ahn and Yun, *Does SGD really happen in tiny
subspaces?*, arXiv 2405.16002). Arrays hold the u_i as rows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.linalg import basis, units
from bulk_sgd.linalg.factors import cut
from bulk_sgd.linalg.ranks import ADAPTIVE, smallest


class Subspace(NamedTuple):
    """Estimated leading eigenpairs of a curvature matrix, with their residuals.

    A row of zeros in `eigenvectors` means that a vector is missing. Projections ignore
    such rows, so an empty subspace projects every vector to zero.

    Attributes:
      eigenvalues: `(k,)`, in the order of the solver: descending by default.
      eigenvectors: the u_i as rows, a pytree like the parameters with leaves
        `(k, *leaf.shape)`, float32 or wider, or a `Factored` basis. Each row has
        length one or zero, and rows are orthogonal. Signs are arbitrary, and vectors of
        close eigenvalues can rotate among themselves: compare projectors, not rows.
      residuals: `(k,)`, the solver's estimates of ‖H u_i − λ_i u_i‖.
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
        """The number of rows k, rows of zeros included."""
        return self.eigenvalues.shape[0]

    @property
    def kept(self):
        """The number of rows that are not zero, an int32 scalar."""
        squares = basis.squared_norms(self.eigenvectors)
        return jnp.sum(squares > 0, dtype=jnp.int32)

    def scaled(self, factor) -> "Subspace":
        """Returns the eigenpairs of c·H, given a factor c > 0: the same vectors."""
        values, residuals = factor * self.eigenvalues, factor * self.residuals
        return self._replace(eigenvalues=values, residuals=residuals)

    def coefficients(self, vector):
        """Returns Uᵀ v, shape `(k,)`, in float32, or float64 if a leaf is float64."""
        whose = "a row of eigenvectors"
        checks.like("vector", vector, basis.like(self.eigenvectors), whose)
        return basis.inner(self.eigenvectors, basis.widen(vector))

    def project(self, vector):
        """Returns P v, the part of v in the subspace; dtype as in `coefficients`."""
        return basis.combine(self.coefficients(vector), self.eigenvectors)

    def complement(self, vector):
        """Returns v − P v, the part of v in the bulk; dtype as in `coefficients`."""
        inside = self.project(vector)
        return basis.subtract(basis.widen(vector), inside)

    def alignment(self, vector):
        """Returns χ_k(v) = ‖P v‖ / ‖v‖, a scalar from 0 to 1; 0 for the zero vector."""
        return alignment(self.coefficients(vector), vector)

    def overlap(self, other: "Subspace"):
        """Returns ‖U₁ᵀ U₂‖²_F / k, from 0 for orthogonal to 1 for equal subspaces.

        U₁ and U₂ are the two bases, and k is the number of nonzero rows in the larger
        one. If k is 0, so is the overlap.
        """
        check_subspace("other", other)
        whose = "those of this subspace"
        rows = map(basis.like, (other.eigenvectors, self.eigenvectors))
        checks.like("eigenvectors of other", *rows, whose)
        cosines = basis.gram(self.eigenvectors, other.eigenvectors)
        larger = jnp.maximum(jnp.maximum(self.kept, other.kept), 1)
        return jnp.sum(cosines**2) / larger

    def factored(
        self,
        factors: int | str,
        axes=None,
        *,
        lost: float = 0.05,
        max_factors: int = 16,
    ) -> tuple["Subspace", jax.Array]:
        """Returns the subspace with its eigenvectors stored in factors.

        Let X_1 … X_k be the m × n matrices of the k eigenvectors for one matrix of
        parameters. The method replaces X_i by F Z_i. All k eigenvectors share the frame
        F, which has q = `factors` orthonormal columns. A singular value decomposition
        of [X_1 … X_k] gives the F that keeps the largest total squared length. That
        takes q (m + k n) numbers, not k m n. Vectors, scalars and matrices with
        m n ≤ q (m + n) stay dense. This *cut* changes the eigenvectors slightly. The
        method makes them orthonormal again, so the projector P onto their span stays
        exact. It first expands a basis in factors to k dense vectors.

        Args:
          factors: the number q of directions, at least 1. Outside `jit` it may be
            "adaptive": the smallest q at which no eigenvector loses more than the share
            `lost` of its squared length, rounding aside. The returned subspace has this
            q as `eigenvectors.factors`, or 0 if every leaf stays dense. Solvers do not
            accept "adaptive". To choose q for a solver, solve once, call
            `factored("adaptive")` on the result, and pass its q to the solver.
          axes: which axes are rows and columns. As in `optax.contrib.muon`: one
            `MuonDimensionNumbers` for all leaves, a pytree of them like the parameters,
            or a function of the parameters that returns either of these. By default a
            leaf of three axes is a stack of matrices. In any other leaf the last axis
            holds the columns, as in a convolution `(h, w, in, out)`.
          lost: with "adaptive", the largest share to lose, from 0 to 1.
          max_factors: with "adaptive", the largest q to try, at least 1. If it is too
            small, q is `max_factors`, and the returned share shows the larger loss.

        Returns:
          The factored `Subspace`, and the share `(k,)` of the squared length of each
          eigenvector that the cut keeps.

        Raises:
          ValueError: if an argument is out of its range.

        Example:
          >>> import jax.numpy as jnp, bulk_sgd
          >>> loss = lambda w: jnp.sum(jnp.outer(jnp.arange(4.0), jnp.ones(5)) * w) ** 2
          >>> matvec = bulk_sgd.hessian(loss, jnp.ones((4, 5)))
          >>> pairs = bulk_sgd.top_eigenpairs(matvec, jnp.ones((4, 5)), rank=1)
          >>> found, kept = pairs.factored(1)
          >>> print(kept.round(3), found.overlap(pairs).round(3))
          [1.] 1.0
          >>> pairs.factored("adaptive", lost=0.01)[0].eigenvectors.factors
          1
        """
        rows = basis.dense(self.eigenvectors)
        if factors == ADAPTIVE:
            checks.between("lost", lost, 0, 1)
            checks.integer("max_factors", max_factors, 1)
            factors = smallest(rows, lost, max_factors, axes)
        checks.integer("factors", factors, 1, why="or 'adaptive'")
        found, kept = cut(rows, factors, axes)
        return self._replace(eigenvectors=found), kept


class Rows(NamedTuple):
    """Vectors in the state of a solver, laid out over devices like the parameters.

    Attributes:
      rows: pytree like the parameters with leaves `(m, *leaf.shape)`.
    """

    rows: Any


def check_subspace(name: str, value):
    """Raises ArgumentError unless `value` is a `Subspace` with k rows."""
    if not isinstance(value, Subspace):
        problem = f"is of type {type(value).__name__}; it must be a bulk_sgd.Subspace."
        raise checks.ArgumentError(name, problem)
    checks.floating(f"eigenvectors of {name}", value.eigenvectors)
    rows, shape = basis.num_rows(value.eigenvectors), jnp.shape(value.eigenvalues)
    if shape != (rows,):
        problem = f"has eigenvalues of shape {shape}; it must have {rows}, one per row."
        raise checks.ArgumentError(name, problem)


def alignment(coefficients, vector):
    """Returns χ_k of a vector with known coefficients Uᵀ v, a scalar."""
    length = basis.norm(vector)
    inside = units.length(coefficients)
    # Rounding can leave ‖P v‖ an ulp above ‖v‖.
    ratio = jnp.minimum(inside / jnp.where(length > 0, length, 1), 1)
    return jnp.where(length == 0, 0, ratio)


def empty(params, rank: int, zeros=basis.zeros) -> Subspace:
    """A subspace of `rank` zero rows for vectors shaped like `params`.

    `zeros(params, rank)` makes the rows, dense by default.
    """
    dtype = basis.working_dtype(params)
    return Subspace(
        eigenvalues=jnp.zeros(rank, dtype),
        eigenvectors=zeros(params, rank),
        residuals=jnp.full(rank, jnp.inf, dtype),
        converged=jnp.zeros((), bool),
        num_matvecs=jnp.zeros((), jnp.int32),
    )
