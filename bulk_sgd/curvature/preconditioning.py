r"""The Hessian in the coordinates of an adaptive optimizer.

Such an optimizer steps by θ ← θ − η P⁻¹ m, with m an average of gradients and P a
positive matrix. (`scale_by_subspace` calls it D, because there P is the projector.)
Adam's P is diagonal. Shampoo, SOAP and Muon have a `Kronecker` for each matrix of
parameters. In the coordinates w = P^½ θ the step is plain momentum on a loss with the
Hessian P^{−½} H P^{−½}. Adam brings the largest eigenvalue of this *preconditioned
Hessian*, not of H, to the edge of stability (Cohen et al., *Adaptive Gradient Methods
at the Edge of Stability*, arXiv 2207.14484).

The eigenvectors of P^{−½} H P^{−½} are orthonormal in w. A transform therefore projects
P^½ u for an update u and multiplies the result by P^{−½}. P changes from step to step,
but a basis kept over several steps belongs to the P of its own step.
"""

import jax
import jax.numpy as jnp

from bulk_sgd import checks, functions
from bulk_sgd.curvature.kronecker import Kronecker
from bulk_sgd.curvature.operators import Wrapped, apply, as_pytree
from bulk_sgd.linalg import basis


def preconditioned(matvec, preconditioner):
    """Returns a function that multiplies vectors by P^{−½} M P^{−½}.

    Args:
      matvec: a callable that multiplies vectors by M.
      preconditioner: P, a pytree like the params. Each leaf is a diagonal, given as a
        positive array, or a `Kronecker`. With None, the result is `matvec` itself.

    Returns:
      A callable pytree as from `hessian`.

    Raises:
      TypeError, ValueError: if an argument has the wrong form, or if a vector does not
        have the shapes that the preconditioner multiplies.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> matvec = bulk_sgd.hessian(lambda x: 8 * x[0] * x[1], jnp.ones(2))
      >>> scaled = bulk_sgd.preconditioned(matvec, jnp.array([4.0, 1.0]))
      >>> jax.vmap(scaled)(jnp.eye(2)).tolist()
      [[0.0, 4.0], [4.0, 0.0]]
    """
    functions.check("matvec", matvec, "vector")
    if preconditioner is None:
        return matvec
    arrays = (root(preconditioner),)
    return Wrapped(_between_divisions, as_pytree(matvec), arrays=arrays)


def root(preconditioner):
    """P^½ in float32, or in float64 if a leaf is float64; None stands for P = 1."""
    if preconditioner is None:
        return None
    checks.floating("preconditioner", preconditioner)
    return _map_values(jnp.sqrt, basis.widen(preconditioner))


def multiply(root, vector):
    """P^½ v, given P^½."""
    if root is None:
        return vector

    def multiply(root, x):
        return root.multiply(x) if is_kronecker(root) else root * x

    return jax.tree.map(multiply, root, vector, is_leaf=is_kronecker)


def divide(root, vector):
    """P^{−½} v, given P^½."""
    if root is None:
        return vector

    def divide(root, x):
        if is_kronecker(root):
            return root.map_values(jnp.reciprocal).multiply(x)
        return x / root

    return jax.tree.map(divide, root, vector, is_leaf=is_kronecker)


def shapes(preconditioner):
    """A pytree with the shapes of the vectors that P multiplies."""
    of = lambda x: x.shape if is_kronecker(x) else jnp.shape(x)
    like = lambda x: jax.ShapeDtypeStruct(of(x), jnp.float32)
    return jax.tree.map(like, preconditioner, is_leaf=is_kronecker)


def is_kronecker(leaf) -> bool:
    """Whether a leaf of a preconditioner is a `Kronecker`, not a diagonal."""
    return isinstance(leaf, Kronecker)


def _map_values(fn, preconditioner):
    apply = lambda x: x.map_values(fn) if is_kronecker(x) else fn(x)
    return jax.tree.map(apply, preconditioner, is_leaf=is_kronecker)


def _between_divisions(matvec, vector, root):
    checks.vector("vector", vector, shapes(root), "the preconditioner")
    scaled = lambda x: basis.cast_like(divide(root, x), x)
    return scaled(apply(matvec, scaled(vector)))
