"""A loss, its gradient and its Hessian products from one pass through the network."""

import jax

from bulk_sgd import checks
from bulk_sgd.curvature import replicas, second_derivatives
from bulk_sgd.curvature.hessian import hessian
from bulk_sgd.linalg import basis


def value_grad_and_matvec(value_fn, params, *, mode: str = "auto"):
    """Returns a loss, its gradient and a function that multiplies by its Hessian.

    The gradient and all products share one pass through the network. Without this
    function, a training step calls `jax.value_and_grad` and gives `value_fn` to a
    transform, and XLA has to find the shared pass. It does so for plain layers, but not
    for layers inside `jax.lax.scan`. Pass the products instead:
    `tx.update(…, matvec=matvec)`.

    An `Objective` in microbatches shares nothing, because sharing would keep the
    activations of all microbatches.

    Args:
      value_fn: as in `bulk_sgd.hessian`.
      params: as in `bulk_sgd.hessian`.
      mode: as in `bulk_sgd.hessian`. Finite differences share nothing.

    Returns:
      `(value, grads, matvec)`: the scalar L(θ), its gradient as a pytree like the
      params, and a function with `matvec(v)` = ∇²L(θ) v, in the dtypes of v. Call
      `matvec` inside the same `jit` as `value_grad_and_matvec`.

    Raises:
      TypeError, ValueError: as in `bulk_sgd.hessian`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, bulk_sgd
      >>> tx = optax.chain(bulk_sgd.project_bulk(rank=1), optax.sgd(0.1))
      >>> loss = lambda x: 50 * x[0] ** 2 + 0.5 * x[1] ** 2
      >>> @jax.jit
      ... def step(params, state):
      ...     value, grads, matvec = bulk_sgd.value_grad_and_matvec(loss, params)
      ...     updates, state = tx.update(grads, state, params, matvec=matvec)
      ...     return optax.apply_updates(params, updates), state, value
      >>> params = jnp.ones(2)
      >>> params, state, value = step(params, tx.init(params))
      >>> print([round(x, 3) for x in params.tolist()], value)
      [1.0, 0.9] 50.5
    """
    separate = hessian(value_fn, params, mode=mode)
    shared = separate.mode != second_derivatives.DIFFERENCES
    if not shared or getattr(value_fn, "is_split", False):
        return *jax.value_and_grad(value_fn)(params), separate
    value, grads, product = second_derivatives.value_and_derivatives(
        value_fn, params, separate.mode
    )

    def matvec(vector):
        checks.vector("vector", vector, params)
        result = product(basis.cast_like(vector, params))
        return replicas.mean(basis.cast_like(result, vector), separate.axes)

    return value, grads, matvec
