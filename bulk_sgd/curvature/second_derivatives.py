"""Ways to differentiate twice, and which of them a function allows.

Most functions are differentiated forwards over their gradient. A kernel that only has a
rule for reverse mode (`jax.custom_vjp`, common for hand-written attention) does not
allow that. If the rule itself can be differentiated, its Hessian is found by reverse
mode twice, otherwise by finite differences of the gradient. In all three modes a
product costs about two gradients.
"""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core.primitives import custom_lin_p

from bulk_sgd import checks
from bulk_sgd.linalg import basis

FORWARD = "forward_over_reverse"
REVERSE = "reverse_over_reverse"
DIFFERENCES = "finite_differences"
AUTO = "auto"
MODES = (AUTO, FORWARD, REVERSE, DIFFERENCES)


def second_derivative(fn: Callable, point, mode: str) -> Callable:
    """The map v ↦ ∇²fn(point) v of a scalar function, in any mode but "auto".

    In the two exact modes its calls share one primal pass.
    """
    return value_and_derivatives(fn, point, mode)[2]


def value_and_derivatives(fn: Callable, point, mode: str) -> tuple:
    """`fn(point)`, its gradient, and the map of `second_derivative`, from one pass."""

    def gradient(point):
        value, grads = jax.value_and_grad(fn)(point)
        return grads, value

    if mode == FORWARD:
        grads, push, value = jax.linearize(gradient, point, has_aux=True)
        return value, grads, push
    if mode == REVERSE:  # a Hessian is its own transpose
        grads, pull, value = jax.vjp(gradient, point, has_aux=True)
        return value, grads, lambda vector: pull(vector)[0]
    grads, value = gradient(point)
    return value, grads, central_difference(jax.grad(fn), point)


def first_derivative(fn: Callable, point, mode: str) -> tuple:
    """`fn(point)` with the maps v ↦ J v and u ↦ Jᵀ u of its Jacobian J.

    In mode "reverse_over_reverse" J v is the derivative of the linear map u ↦ Jᵀ u,
    taken backwards: the double-vjp trick.
    """
    if mode == FORWARD:
        outputs, push = jax.linearize(fn, point)
        transposed = jax.linear_transpose(push, point)
        return outputs, push, lambda vector: transposed(vector)[0]
    outputs, vjp = jax.vjp(fn, point)
    pull = lambda vector: vjp(vector)[0]
    if mode == REVERSE:
        push = jax.vjp(pull, jax.tree.map(jnp.zeros_like, outputs))[1]
        return outputs, lambda vector: push(vector)[0], pull
    return outputs, central_difference(fn, point), pull


def central_difference(fn: Callable, point) -> Callable:
    """The map v ↦ (fn(θ + h v) − fn(θ − h v)) / 2h, close to the derivative along v.

    Rounding of θ + h v and of fn changes the result by about ε ‖θ‖ / h‖v‖, with ε of
    the dtype. The third derivative changes it by about (h‖v‖ / b)², if fn bends over
    lengths of order b. The step h‖v‖ = (ε ‖θ‖ b²)^⅓ balances the two and leaves a
    relative error of about (ε ‖θ‖ / b)^⅔.

    Nothing tells b but the size of θ, so that a scale of the parameters changes
    nothing: b is 32 ‖θ‖ / √n for n parameters, 32 root mean squares, but at most
    ‖θ‖ / 4. Networks of any size have a b near 1 at the usual initialisations. The
    relative error in float32 is 6·10⁻⁵ up to 16,000 parameters and 4·10⁻⁴ at 5 million.
    At θ = 0, ‖θ‖ stands for 1.

    A solver does not see this error: its residuals come from its own recurrence and
    only include rounding. It may therefore report `converged` for a tolerance below the
    error. Choose a `tol` of at least ten times `error(point)`.

    Raises:
      ValueError: if a leaf is narrower than float32.
    """
    dtype = _coarsest(point)
    if jnp.finfo(dtype).eps > jnp.finfo(jnp.float32).eps:
        raise ValueError(
            f"mode is {DIFFERENCES!r} with params in {dtype.name}; it needs float32 or "
            "wider, because narrower arrays round its step away. Take another mode or "
            "wider params."
        )

    def along(vector):
        length, reach = (basis.norm_in_units(x) for x in (vector, point))
        length = jnp.where(length > 0, length, 1)
        step = error(point) ** 0.5 / _bends(point) * jnp.where(reach > 0, reach, 1)
        move = lambda s: jax.tree.map(
            lambda x, v: x + s.astype(x.dtype) * (v / length.astype(x.dtype)),
            point,
            vector,
        )
        return jax.tree.map(
            lambda a, b: (a - b) / (2 * step).astype(a.dtype) * length.astype(a.dtype),
            fn(move(step)),
            fn(move(-step)),
        )

    return along


def error(point) -> float:
    """The relative error of `central_difference`, about (ε ‖θ‖ / b)^⅔."""
    epsilon = float(jnp.finfo(_coarsest(point)).eps)
    return (epsilon * _bends(point)) ** (2 / 3)


def _bends(point) -> float:
    """‖θ‖ / b, for the length b over which a function is taken to bend."""
    return max(4, basis.size(point) ** 0.5 / 32)


def _coarsest(tree):
    dtypes = [x.dtype for x in jax.tree.leaves(tree)]
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).eps)


def choose(name: str, product: Callable) -> str:
    """The first mode in which a product of the curvature `name` can be traced.

    Any mode but forward-over-reverse comes with a UserWarning that says why. `product`
    maps a mode to the jaxpr of a product, and raises if JAX cannot differentiate that
    way; an error in the last mode, which takes no second derivative, is passed on.
    """
    mode, reasons = first_allowed(product)
    if reasons:
        warnings.warn(
            f"bulk_sgd.{name} differentiates by {mode}, because "
            f"{'; '.join(reasons)} (mode={mode!r} says so without a warning).",
            stacklevel=4,
        )
    return mode


def first_allowed(product: Callable) -> tuple[str, list[str]]:
    """The mode that `choose` takes, and why each mode before it fails."""
    reasons = []
    for mode in (FORWARD, REVERSE):
        try:
            _check_rules(product(mode).jaxpr)
        except checks.ArgumentError:  # the arguments are wrong in every mode
            raise
        except Exception as error:  # JAX has no type for a missing rule
            reason = str(error).partition("\n")[0]
            reasons.append(f"{mode} fails with {type(error).__name__}: {reason}")
        else:
            return mode, reasons
    product(DIFFERENCES)
    return DIFFERENCES, reasons


def equations(jaxpr):
    """The equations of a program and of all programs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def _check_rules(jaxpr):
    """Raises TypeError if a program has no rule for one of its derivatives.

    For the forward derivative of a `jax.custom_vjp` JAX leaves a placeholder, which
    transposition may yet remove, and raises only when it compiles one.
    """
    if any(equation.primitive is custom_lin_p for equation in equations(jaxpr)):
        raise TypeError("a kernel has a jax.custom_vjp and no jvp")
