r"""The Hessian in the coordinates of an adaptive optimizer.

Adam steps by θ ← θ − η P⁻¹ m, with m an average of gradients and P a positive diagonal
matrix. (`scale_by_subspace` calls it D, since P is its projector.) In the coordinates
w = P^½ θ this is plain momentum on a loss with the Hessian P^{−½} H P^{−½}. Adam brings
the largest eigenvalue of this *preconditioned Hessian*, not of H, to the edge of
stability (Cohen et al., *Adaptive Gradient Methods at the Edge of Stability*,
arXiv 2207.14484).

The eigenvectors of P^{−½} H P^{−½} are orthonormal in w. A transform therefore projects
P^½ u for an update u and multiplies the result by P^{−½}. P changes from step to step,
but a basis kept over several steps belongs to the P of its own step.
"""

import jax
import jax.numpy as jnp
import optax

from bulk_sgd import checks, functions
from bulk_sgd.curvature.operators import Wrapped, apply, as_pytree
from bulk_sgd.linalg import basis


def preconditioned(matvec, preconditioner):
    """Returns a function that multiplies vectors by P^{−½} M P^{−½}.

    Args:
      matvec: a callable that multiplies vectors by M.
      preconditioner: the diagonal of P, a pytree of positive arrays like the params.

    Returns:
      A callable pytree as from `hessian`.

    Raises:
      TypeError, ValueError: if an argument or a vector has another form.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> matvec = bulk_sgd.hessian(lambda x: 8 * x[0] * x[1], jnp.ones(2))
      >>> scaled = bulk_sgd.preconditioned(matvec, jnp.array([4.0, 1.0]))
      >>> jax.vmap(scaled)(jnp.eye(2)).tolist()
      [[0.0, 4.0], [4.0, 0.0]]
    """
    functions.check("matvec", matvec, "vector")
    scale = root(preconditioner)
    return Wrapped(_between_divisions, as_pytree(matvec), arrays=(scale,))


def adam_preconditioner(
    state, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, eps_root: float = 0.0
):
    """Returns the diagonal of P in Adam's last step θ ← θ − η P⁻¹ m.

    After t steps of `optax.adam` or `adamw`, P = (1 − b1^t) (√(v̂ + eps_root) + eps).
    Here m is the average of the gradients without bias correction, and v̂ is the average
    of their squares with it. The formula does not hold for `optax.nadam`, which
    replaces m. In float32 the squares hold gradients from 10⁻¹⁹ to 10¹⁹.

    Args:
      state: state of the optimizer after its update, alone or inside other states.
      b1: as given to the optimizer.
      b2: as given to the optimizer.
      eps: as given to the optimizer.
      eps_root: as given to the optimizer.

    Returns:
      A pytree like the parameters, in their dtypes.

    Raises:
      ValueError: unless `state` contains exactly one state of Adam, or if a number is
        out of its range.

    Example:
      >>> import jax.numpy as jnp, optax, bulk_sgd
      >>> adam, params = optax.adam(0.1), jnp.zeros(2)
      >>> grads = jnp.array([2.0, -4.0])
      >>> updates, state = adam.update(grads, adam.init(params))
      >>> print(bulk_sgd.adam_preconditioner(state).round(3))
      [0.2 0.4]
    """
    for name, value in (("b1", b1), ("b2", b2)):
        checks.between(name, value, 0, 1, below=True)
    for name, value in (("eps", eps), ("eps_root", eps_root)):
        checks.at_least(name, value, 0)
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)
    found = [x for x in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(x)]
    if len(found) != 1:
        raise ValueError(
            f"state has {len(found)} states of Adam in it; it must have exactly one, "
            "from optax.adam or optax.adamw."
        )
    count = jnp.maximum(found[0].count, 1)  # 0 before the first step
    corrected = optax.tree.bias_correction(found[0].nu, b2, count)
    average = 1 - b1**count
    return jax.tree.map(
        lambda v: (average * (jnp.sqrt(v + eps_root) + eps)).astype(v.dtype), corrected
    )


def root(preconditioner):
    """P^½ as a vector in float32, or in float64 if a leaf is float64."""
    checks.floating("preconditioner", preconditioner)
    return jax.tree.map(jnp.sqrt, basis.widen(preconditioner))


def _between_divisions(matvec, vector, scale):
    checks.vector("vector", vector, scale, "the preconditioner")
    divide = lambda x: jax.tree.map(lambda a, s: (a / s).astype(a.dtype), x, scale)
    return divide(apply(matvec, divide(vector)))
