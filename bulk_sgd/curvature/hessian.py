r"""Products with the curvature of a loss: Hessian, Gauss-Newton, functional Hessian.

The Hessian of a loss L(θ) = ℓ(f(θ)) is exactly the sum of two matrices,

  H = G + F,   G = Jᵀ ∇²ℓ J,   F = Σ_c (∂ℓ/∂f_c) ∇²f_c,

with J the Jacobian of the model outputs f. G is the generalized Gauss-Newton matrix
(Schraudolph, *Fast curvature matrix-vector products for second-order gradient descent*,
2002), and F is the functional Hessian. The module `second_derivatives` does the
differentiation.

A product that you call directly runs with matmul precision "highest", and so do the
products in `top_eigenpairs`: in bfloat16 or TF32, Lanczos converges to rounding noise.
A loss that sets `jax.default_matmul_precision` itself keeps its setting. A matvec that
`linearize` returns follows the precision in force, so that a product in a training step
can share the primal pass of the gradient.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from bulk_sgd import checks, functions
from bulk_sgd.curvature import replicas, second_derivatives
from bulk_sgd.curvature.objective import Objective
from bulk_sgd.curvature.operators import as_pytree
from bulk_sgd.linalg import basis


def hessian(value_fn, params, *, mode: str = "auto"):
    """Returns a function that multiplies vectors by the Hessian of a scalar function.

    If `value_fn` is an `Objective` in microbatches, each product recomputes the
    gradient one microbatch at a time.

    Args:
      value_fn: `value_fn(params) -> scalar`, an `Objective` or any function.
      params: pytree of floating point arrays, the point θ.
      mode: how to differentiate twice.

        - "forward_over_reverse" suits almost every network;
        - "reverse_over_reverse" is for kernels that only have a `jax.custom_vjp`;
        - "finite_differences" of the gradient is for kernels whose backward pass cannot
          be differentiated. Its relative error is 6·10⁻⁵ in float32, and more in large
          networks: see `second_derivatives.central_difference`;
        - "auto" uses the first of these modes that JAX can trace, and warns if that is
          not "forward_over_reverse".

    Returns:
      A callable pytree: `matvec(v)` is ∇²L(θ) v, in the dtypes of v. Its `linearize()`
      runs the primal pass once and returns a matvec that reuses it.

    Raises:
      TypeError: if `value_fn` does not return a real scalar.
      ValueError: if the params are not floating point arrays, if they are narrower than
        float32 with finite differences, or if `mode` is unknown.

    Example:
      >>> import jax.numpy as jnp, bulk_sgd
      >>> matvec = bulk_sgd.hessian(lambda x: x[0] ** 2 * x[1], jnp.array([1.0, 3.0]))
      >>> matvec(jnp.array([1.0, 0.0])).tolist()
      [6.0, 2.0]
    """
    checks.floating("params", params)
    functions.check("value_fn", value_fn, "params")  # before it becomes a pytree
    return _curvature("hessian", _hessian, as_pytree(value_fn), params, mode)


def gauss_newton(objective, params, *, mode: str = "auto"):
    """Returns a function that multiplies vectors by G = Jᵀ ∇²ℓ J.

    G is the generalized Gauss-Newton matrix, J the Jacobian of the model outputs f, and
    ∇²ℓ the Hessian of the loss ℓ(f).

    Args:
      objective: an `Objective`; G depends on where the model ends and the loss begins.
      params: pytree of floating point arrays, the point θ.
      mode: how to compute J v, one of the modes of `hessian`. A model with a
        `jax.custom_vjp` has no forward derivative; "reverse_over_reverse"
        differentiates u ↦ Jᵀ u backwards instead. Products with ∇²ℓ use the same mode,
        except that "finite_differences" gives way to one of the other modes if the loss
        allows it.

    Returns:
      A callable pytree as from `hessian`.

    Raises:
      TypeError: if `objective` is not an `Objective`.
      ValueError: as in `hessian`.

    Example:
      >>> import jax.numpy as jnp, bulk_sgd
      >>> objective = bulk_sgd.Objective(
      ...     lambda w, x: x @ w, lambda f, y: (f - y) ** 2, jnp.eye(2), jnp.ones(2))
      >>> bulk_sgd.gauss_newton(objective, jnp.zeros(2))(jnp.ones(2)).tolist()
      [1.0, 1.0]
    """
    _check_objective("gauss_newton", objective)
    checks.floating("params", params)
    return _curvature("gauss_newton", _gauss_newton, objective, params, mode)


def functional_hessian(objective, params, *, mode: str = "auto"):
    """Returns a function that multiplies vectors by F = Σ_c (∂ℓ/∂f_c) ∇²f_c.

    Here f_c are the model outputs and ℓ is the loss. F is the Hessian of
    Σ_c stop_gradient(∂ℓ/∂f_c) f_c(θ), and products use this form. F also equals
    the Hessian minus the Gauss-Newton matrix, but this difference would lose digits if
    F is small. For piecewise linear networks the diagonal of F is zero almost
    everywhere, and so is the trace.

    Args:
      objective: an `Objective`.
      params: pytree of floating point arrays, the point θ.
      mode: as in `hessian`.

    Returns:
      A callable pytree as from `hessian`.

    Raises:
      TypeError: if `objective` is not an `Objective`.
      ValueError: as in `hessian`.

    Example:
      >>> import jax.numpy as jnp, bulk_sgd
      >>> objective = bulk_sgd.Objective(  # f = w0 w1 x, ℓ = f
      ...     lambda w, x: w[0] * w[1] * x, lambda f, y: f, jnp.ones(1), jnp.ones(1))
      >>> bulk_sgd.functional_hessian(objective, jnp.ones(2))(jnp.ones(2)).tolist()
      [1.0, 1.0]
    """
    name = "functional_hessian"
    _check_objective(name, objective)
    checks.floating("params", params)
    return _curvature(name, _functional_hessian, objective, params, mode)


CURVATURES = {
    "hessian": hessian,
    "gauss_newton": gauss_newton,
    "functional_hessian": functional_hessian,
}


def _hessian(objective, params, mode):
    return second_derivatives.second_derivative(objective, params, mode)


def _gauss_newton(objective, params, mode):
    outputs, push, pull = second_derivatives.first_derivative(
        objective.outputs, params, mode
    )
    second = lambda mode: second_derivatives.second_derivative(
        objective.loss, outputs, mode
    )
    if mode == second_derivatives.DIFFERENCES:  # which the model needs, not the loss
        mode, _ = second_derivatives.first_allowed(
            lambda mode: jax.make_jaxpr(second(mode))(outputs)
        )
    loss_hessian = second(mode)
    return lambda vector: pull(loss_hessian(push(vector)))


def _functional_hessian(objective, params, mode):
    slope = jax.grad(objective.loss)(objective.outputs(params))

    def pairing(params):
        return basis.dot(slope, objective.outputs(params))

    return second_derivatives.second_derivative(pairing, params, mode)


def _check_objective(name, objective):
    if not isinstance(objective, Objective):
        raise TypeError(
            f"{name} needs a bulk_sgd.Objective, which knows where the model ends and "
            f"the loss begins; got {type(objective).__name__}."
        )


def _curvature(name, linear_map, objective, params, mode):
    """A `_Curvature` in a mode; "auto" finds it by tracing products."""
    checks.one_of("mode", mode, second_derivatives.MODES)
    axes = replicas.shared_axes(check_loss(objective, params))
    if isinstance(objective, Objective):
        checks.auto_axes("inputs", objective.inputs)
        checks.auto_axes("targets", objective.targets)
        objective.total_weight()  # refuses wrong weights where they are known
    make = lambda mode: _Curvature(objective, params, linear_map, mode, axes)
    if mode == second_derivatives.AUTO:
        # A call outside of `jit` needs this trace anyhow, and finds it again.
        trace = lambda mode: jax.make_jaxpr(_apply)(make(mode), params)
        mode = second_derivatives.choose(name, trace)
    return make(mode)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Curvature:
    """A curvature operator at `params`, a mean over the examples of its objective.

    `linear_map` distinguishes H, G and F. `operators.Wrapped` says why they share a
    class.
    """

    objective: Any
    params: Any
    linear_map: Callable = dataclasses.field(metadata={"static": True})
    mode: str = dataclasses.field(metadata={"static": True})
    axes: tuple = dataclasses.field(metadata={"static": True})  # of replicas

    def __call__(self, vector):
        checks.vector("vector", vector, self.params)
        return _apply(self, vector)

    def linearize(self) -> Callable:
        """Returns a matvec; all its calls share one primal pass.

        With microbatches each call recomputes the primal pass, one microbatch at a
        time: sharing it would take the memory of all microbatches.
        """
        if getattr(self.objective, "is_split", False):
            product = lambda vector: self.objective.mean_over_microbatches(
                lambda part: self._product(part)(vector)
            )
        else:
            product = self._product(self.objective)
        return lambda vector: replicas.mean(product(vector), self.axes)

    def _product(self, part):
        linear = self.linear_map(part, self.params, self.mode)

        def product(vector):
            checks.vector("vector", vector, self.params)
            result = linear(basis.cast_like(vector, self.params))
            return basis.cast_like(result, vector)

        return product


@jax.jit
def _apply(curvature, vector):
    with jax.default_matmul_precision("highest"):
        return curvature.linearize()(vector)


@jax.jit
def _evaluate(value_fn, params):
    hint = "; it must be a function of these params that JAX can trace"
    if None in jax.tree.leaves(params, is_leaf=lambda x: x is None):
        hint += ", and put back what they have as None, as equinox.combine does"
    value = functions.call("value_fn", value_fn, params, hint=hint)
    check_scalar(value)
    return value


def check_loss(value_fn, params):
    """The jaxpr of a loss; raises TypeError unless it is a real scalar function."""
    functions.check("value_fn", value_fn, "params")
    return jax.make_jaxpr(_evaluate)(as_pytree(value_fn), params)


def check_scalar(value):
    """Raises TypeError unless `value`, returned by a `value_fn`, is a real scalar."""
    allowed = "one real scalar, the loss at the given parameters"
    functions.returned("value_fn", value, allowed, scalar=True)
