r"""Preconditioners of matrices of parameters, given by their eigenvectors.

Shampoo, SOAP and Muon treat an m × n matrix X of parameters as a vector of length m n.
They divide it by a positive matrix P whose eigenvectors are products u_i v_jᵀ. The u_i
are the columns of an orthogonal matrix U, and the v_j are those of V:

  P^s X = U (D^s ∘ (Uᵀ X V)) Vᵀ,   D_ij the eigenvalue of P for u_i v_jᵀ.

Here ∘ multiplies entry by entry. A Kronecker product P = A ⊗ B maps X to A X B. Its
D_ij is a_i b_j, a product of eigenvalues of A and B.
"""

import dataclasses

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.linalg import basis
from bulk_sgd.linalg.matrices import Sides


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kronecker:
    """Preconditions one parameter, viewed as a stack of N matrices, m × n each.

    For each matrix, the preconditioner P has the eigenvectors u_i v_jᵀ.
    `kronecker_preconditioner` and `eigenbasis_preconditioner` return a `Kronecker`.
    `muon_preconditioner` returns a pytree with one for each parameter that Muon does
    not leave to Adam.

    Attributes:
      left: `(N, m, p)`, the u_i as columns, p ≤ m.
      right: `(N, n, n)`, the v_j as columns.
      values: `(N, p, n)`, the eigenvalue for each u_i v_jᵀ. If p < m, it is
        `(N, p + 1, n)`: the last row is for all vectors orthogonal to the u_i.
      shape: the parameter's shape. Static.
      sides: which of its axes are the rows and the columns of the matrices. Static.
    """

    left: jax.Array
    right: jax.Array
    values: jax.Array
    shape: tuple = dataclasses.field(metadata={"static": True})
    sides: Sides = dataclasses.field(metadata={"static": True})

    def map_values(self, fn) -> "Kronecker":
        """The same eigenvectors, with `fn` of the eigenvalues."""
        return dataclasses.replace(self, values=fn(self.values))

    @jax.default_matmul_precision("highest")
    def multiply(self, vector):
        """P times an array of the parameter's shape, in the wider dtype of the two."""
        turned = self.sides.matrices(vector[None])[0] @ self.right
        found = self.left.mT @ turned
        rank = self.left.shape[-1]
        inside, outside = self.values[:, :rank], self.values[:, rank:]
        if outside.shape[1]:
            found = self.left @ ((inside - outside) * found) + outside * turned
        else:
            found = self.left @ (inside * found)
        return self.sides.fold((found @ self.right.mT)[None], self.shape)[0]


def kronecker_preconditioner(left, right, power: float = 0.25, eps: float = 1e-6):
    """Returns P = L^power ⊗ R^power, which maps X to L^power X R^power.

    Shampoo (Gupta, Koren and Singer, *Shampoo: Preconditioned Stochastic Tensor
    Optimization*, arXiv 1802.09568) has power ¼, L = Σ G Gᵀ and R = Σ Gᵀ G, summed over
    gradients G. The cost is an eigendecomposition of L and one of R, O(m³ + n³).

    Args:
      left: `(…, m, m)`, symmetric and positive semidefinite; for m × n parameters.
      right: `(…, n, n)`, likewise.
      power: at least 0.
      eps: above 0. Eigenvalues of `left` and `right` are clipped from below at `eps`
        times the largest one, or at `eps` if that is zero.

    Returns:
      A `Kronecker` in float32, or float64 if an argument is. In the pytree that you
      pass as `preconditioner`, for example to `preconditioned`, it is the leaf for a
      parameter of shape `(…, m, n)`.

    Raises:
      ValueError: if an argument has the wrong form or is out of range.

    Example:
      >>> import jax.numpy as jnp, bulk_sgd
      >>> left, right = jnp.diag(jnp.array([16.0, 1.0])), 81 * jnp.eye(3)
      >>> scale = bulk_sgd.kronecker_preconditioner(left, right)  # P has 6 and 3
      >>> params = jnp.ones((2, 3))
      >>> matvec = bulk_sgd.hessian(lambda x: 9 * jnp.sum(x**2), params)
      >>> print(bulk_sgd.preconditioned(matvec, scale)(params).round(4))
      [[3. 3. 3.]
       [6. 6. 6.]]
    """
    checks.at_least("power", power, 0)
    checks.at_least("eps", eps, 0, above=True)
    pair = _square(left=left, right=right)

    def decompose(matrix):
        values, vectors = jnp.linalg.eigh(matrix)
        largest = jnp.max(values, axis=-1, keepdims=True)
        least = eps * jnp.where(largest > 0, largest, 1)
        return vectors, jnp.maximum(values, least) ** power

    (u, rows), (v, columns) = map(decompose, pair)
    return eigenbasis_preconditioner(u, v, rows[..., :, None] * columns[..., None, :])


def eigenbasis_preconditioner(left, right, values):
    """Returns P with given eigenvectors u_i v_jᵀ and eigenvalues `values[i, j]`.

    SOAP (Vyas et al., *SOAP: Improving and Stabilizing Shampoo using Adam*,
    arXiv 2409.11321) is Adam in the eigenvectors of Shampoo's L and R: its `values` are
    √v̂ + eps, with v̂ the average of squared gradients in this basis.

    Args:
      left: `(…, m, m)`, orthonormal columns u_i; for m × n parameters.
      right: `(…, n, n)`, orthonormal columns v_j.
      values: `(…, m, n)`, positive.

    Returns:
      A `Kronecker` in float32, or float64 if an argument is. In the pytree that you
      pass as `preconditioner`, for example to `preconditioned`, it is the leaf for a
      parameter of shape `(…, m, n)`.

    Raises:
      ValueError: if an argument has the wrong form.

    Example:
      >>> import jax.numpy as jnp, bulk_sgd
      >>> values = jnp.array([[2.0, 4.0]])  # roots of second moments
      >>> scale = bulk_sgd.eigenbasis_preconditioner(jnp.eye(1), jnp.eye(2), values)
      >>> params = jnp.ones((1, 2))
      >>> matvec = bulk_sgd.hessian(lambda x: 2 * jnp.sum(x**2), params)
      >>> print(bulk_sgd.preconditioned(matvec, scale)(params).round(4))
      [[2. 1.]]
    """
    left, right = _square(left=left, right=right)
    checks.floating("values", values)
    stack, (m, n) = values.shape[:-2], values.shape[-2:]
    for name, matrix, side in (("left", left, m), ("right", right, n)):
        if matrix.shape != (*stack, side, side):
            raise checks.ArgumentError(
                name,
                f"is of shape {matrix.shape}; it must be of {(*stack, side, side)}, "
                f"because values is of {values.shape}.",
            )
    joined = basis.widen([x.reshape(-1, *x.shape[-2:]) for x in (left, right, values)])
    ndim = values.ndim
    return Kronecker(*joined, values.shape, Sides((ndim - 2,), (ndim - 1,)))


def _square(**matrices):
    """The arguments in their working dtype; raises ArgumentError unless square."""
    for name, matrix in matrices.items():
        checks.floating(name, matrix)
        shape = jnp.shape(matrix)
        if len(shape) < 2 or shape[-1] != shape[-2]:
            problem = f"is of shape {shape}; it must be square in its last two axes."
            raise checks.ArgumentError(name, problem)
    return basis.widen(tuple(matrices.values()))
