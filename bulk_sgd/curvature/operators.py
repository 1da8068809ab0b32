r"""Curvature as products with vectors: Hessian, Gauss-Newton and functional Hessian.

For a loss L(θ) = ℓ(f(θ)) the Hessian splits exactly into two parts,

  H = G + F,   G = Jᵀ ∇²ℓ J,   F = Σ_c (∂ℓ/∂f_c) ∇²f_c,

with J the Jacobian of the model outputs f. G is the generalized Gauss-Newton matrix
(Schraudolph, *Fast curvature matrix-vector products for second-order gradient
descent*, 2002) and F the functional Hessian. Each function here returns a *matvec*,
a callable from a pytree like the parameters to another one, which never forms the
matrix.

A matvec is itself a pytree whose leaves are the parameters and the data, so it passes
through `jax.jit`: two solves on the same network at different parameters share one
compiled program. A plain Python function inside it is static, as everywhere in JAX:
arrays that change between calls belong in an `Objective` or a
`jax.tree_util.Partial`, not in a global variable that the function reads.

A product called by itself runs with matmul precision "highest", and so do those of
`top_eigenpairs`: on bfloat16 or TF32 products Lanczos converges to the rounding noise.
A loss that sets `jax.default_matmul_precision` within itself has its own all the same.
What `linearize` returns follows the precision in force, so that a product in a training
step can share its primal pass with the gradient.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.curvature import second_derivatives
from bulk_sgd.curvature.objective import Objective
from bulk_sgd.linalg import basis


def hessian(value_fn, params, *, mode: str = "auto"):
    """Matvec with the Hessian of a scalar function of the parameters.

    With an `Objective` in microbatches each product recomputes the gradient one
    microbatch at a time.

    Args:
      value_fn: `value_fn(params) -> scalar`, an `Objective` or any function.
      params: pytree of floating point arrays, the point θ.
      mode: "forward_over_reverse", "reverse_over_reverse", for kernels that only have a
        `jax.custom_vjp`, "finite_differences" of the gradient, for kernels whose
        backward pass cannot be differentiated, with a relative error of about
        (ε (1 + ‖θ‖))^⅔, see `second_derivatives.central_difference`; or "auto", the
        first of these that can be traced, with a warning unless it is the first one.

    Returns:
      A callable pytree: `matvec(v)` is ∇²L(θ) v, in float32 or wider. Its
      `linearize()` runs the primal pass once and returns a matvec that shares it.

    Raises:
      TypeError: if `value_fn` does not return a real scalar.
      ValueError: if the params are not floating point arrays, or narrower than float32
        where finite differences are taken, or `mode` is none of the above.

    Example:
      >>> import jax.numpy as jnp, bulk_sgd
      >>> matvec = bulk_sgd.hessian(lambda x: x[0] ** 2 * x[1], jnp.array([1.0, 3.0]))
      >>> matvec(jnp.array([1.0, 0.0])).tolist()
      [6.0, 2.0]
    """
    checks.floating("params", params)
    if not isinstance(value_fn, Objective):  # a mean, so a scalar by construction
        check_scalar(jax.eval_shape(value_fn, params))
    return _curvature(as_pytree(value_fn), params, _hessian_map, mode)


def gauss_newton(objective, params, *, mode: str = "auto"):
    """Matvec with the generalized Gauss-Newton matrix G = Jᵀ ∇²ℓ J.

    Args:
      objective: an `Objective`; G depends on where the model ends and the loss begins.
      params: pytree of floating point arrays, the point θ.
      mode: as in `hessian`, for J v, which a model with a `jax.custom_vjp` has no
        forward mode for: reverse over reverse differentiates u ↦ Jᵀ u backwards
        instead. ∇²ℓ follows, but is exact with finite differences too, where the
        loss has an exact mode.

    Returns:
      A callable pytree as from `hessian`.

    Raises:
      TypeError: if `objective` is not an `Objective`.
      ValueError: as `hessian`.

    Example:
      >>> import jax.numpy as jnp, bulk_sgd
      >>> objective = bulk_sgd.Objective(
      ...     lambda w, x: x @ w, lambda f, y: (f - y) ** 2, jnp.eye(2), jnp.ones(2))
      >>> bulk_sgd.gauss_newton(objective, jnp.zeros(2))(jnp.ones(2)).tolist()
      [1.0, 1.0]
    """
    _check_objective(objective, "gauss_newton")
    checks.floating("params", params)
    return _curvature(objective, params, _gauss_newton_map, mode)


def functional_hessian(objective, params, *, mode: str = "auto"):
    """Matvec with the functional Hessian F = Σ_c (∂ℓ/∂f_c) ∇²f_c.

    Computed directly, as the Hessian of Σ stop_gradient(∂ℓ/∂f) · f(θ), and not as
    H − G, which cancels where F is small. For piecewise linear networks the diagonal
    of F, and so its trace, is zero almost everywhere.

    Args:
      objective: an `Objective`.
      params: pytree of floating point arrays, the point θ.
      mode: as in `hessian`.

    Returns:
      A callable pytree as from `hessian`.

    Raises:
      TypeError: if `objective` is not an `Objective`.
      ValueError: as `hessian`.

    Example:
      >>> import jax.numpy as jnp, bulk_sgd
      >>> objective = bulk_sgd.Objective(  # f = w0 w1 x, ℓ = f
      ...     lambda w, x: w[0] * w[1] * x, lambda f, y: f, jnp.ones(1), jnp.ones(1))
      >>> bulk_sgd.functional_hessian(objective, jnp.ones(2))(jnp.ones(2)).tolist()
      [1.0, 1.0]
    """
    _check_objective(objective, "functional_hessian")
    checks.floating("params", params)
    return _curvature(objective, params, _functional_hessian_map, mode)


CURVATURES = {
    "hessian": hessian,
    "gauss_newton": gauss_newton,
    "functional_hessian": functional_hessian,
}


def sharded(matvec, sharding):
    """The same products, with every vector laid out over devices like the parameters.

    XLA chooses the layout of what nobody constrains, and may choose a whole copy of a
    basis on every device, or one layout in a loop and another around it. A solver
    whose products are constrained carries its basis in the same layout. There is no
    collective in it: XLA derives those from the layouts.

    Args:
      matvec: a callable from vector to vector.
      sharding: `NamedSharding`s of the parameters on a mesh with Auto axes, a pytree
        like them or a prefix of it; None returns `matvec` itself.

    Returns:
      A callable pytree like `matvec`.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> auto = (jax.sharding.AxisType.Auto,)
      >>> mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=auto)
      >>> sharding = jax.NamedSharding(mesh, jax.P("fsdp"))
      >>> params = jax.device_put(jnp.arange(8.0), sharding)
      >>> matvec = bulk_sgd.hessian(lambda x: jnp.sum(x**3), params)
      >>> pairs = bulk_sgd.top_eigenpairs(
      ...     bulk_sgd.sharded(matvec, sharding), jnp.ones(8), rank=1)
      >>> print(pairs.eigenvalues.round(2))
      [42.]
    """
    if sharding is None:
        return matvec
    leaves, structure = jax.tree.flatten(sharding)
    return _Sharded(as_pytree(matvec), (tuple(leaves), structure))


def spans_devices(matvec) -> bool:
    """Whether the vectors of a matvec may lie on several devices, for all one can see.

    Args:
      matvec: a callable pytree. With one of `sharded` in it: whether its layout has
        several devices; else whether there are several here.
    """
    is_sharded = lambda x: isinstance(x, _Sharded)
    found = filter(is_sharded, jax.tree.leaves(matvec, is_leaf=is_sharded))
    layouts = [layout for x in found for layout in x.flat_sharding[0]]
    if layouts:
        return any(layout.num_devices > 1 for layout in layouts)
    return jax.device_count() > 1


def as_pytree(fn):
    """`fn` itself if it is a callable pytree, else wrapped so that it is one."""
    is_leaf = jax.tree_util.all_leaves([fn])
    return jax.tree_util.Partial(fn) if is_leaf else fn


def linearize(matvec):
    """A matvec that shares the work common to all products at one point.

    Call it inside the traced function that uses the result.

    Args:
      matvec: any callable from vector to vector.

    Returns:
      `matvec.linearize()` where there is one, else `matvec`.
    """
    return matvec.linearize() if hasattr(matvec, "linearize") else matvec


def _hessian_map(part, params, mode):
    return second_derivatives.second_derivative(part, params, mode)


def _gauss_newton_map(part, params, mode):
    outputs, push, pull = second_derivatives.first_derivative(
        part.outputs, params, mode
    )
    if mode == second_derivatives.DIFFERENCES:  # for the sake of the model, as a rule
        second = lambda mode: second_derivatives.second_derivative(
            part.loss, outputs, mode
        )
        mode, _ = second_derivatives.first_allowed(
            lambda mode: jax.make_jaxpr(second(mode))(outputs)
        )
    loss_hessian = second_derivatives.second_derivative(part.loss, outputs, mode)
    return lambda vector: pull(loss_hessian(push(vector)))


def _functional_hessian_map(part, params, mode):
    slope = jax.grad(part.loss)(part.outputs(params))

    def pairing(params):
        return basis.dot(slope, part.outputs(params))

    return second_derivatives.second_derivative(pairing, params, mode)


def _curvature(objective, params, linear_map, mode):
    """A `_Curvature` in a mode, which is found by tracing products if it is "auto"."""
    checks.one_of("mode", mode, second_derivatives.MODES)
    if mode == second_derivatives.AUTO:
        mode = second_derivatives.choose(
            linear_map.__name__.strip("_").removesuffix("_map"),
            # The trace that a call outside of `jit` needs anyhow, and finds again.
            product=lambda mode: jax.make_jaxpr(_apply)(
                _Curvature(objective, params, linear_map, mode), params
            ),
        )
    return _Curvature(objective, params, linear_map, mode)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Curvature:
    """A symmetric operator at `params`, linear over the examples of its objective.

    One class with a static field, not a class per kind: JAX 0.10 takes treedefs of
    different dataclasses with equal static fields for equal, so that `jit` would now
    and then run the program of another kind.
    """

    objective: Any
    params: Any
    linear_map: Callable = dataclasses.field(metadata={"static": True})
    mode: str = dataclasses.field(metadata={"static": True})

    def __call__(self, vector):
        return _apply(self, vector)

    def linearize(self) -> Callable:
        """A matvec that shares one primal pass between its calls.

        With microbatches there is nothing to share within bounded memory: each call
        then recomputes its primal pass, one microbatch at a time.
        """
        if not getattr(self.objective, "is_split", False):
            return self._product(self.objective)
        return lambda vector: self.objective.mean_over_microbatches(
            lambda part: self._product(part)(vector)
        )

    def _product(self, part):
        linear = self.linear_map(part, self.params, self.mode)

        def product(vector):
            result = linear(basis.cast_like(vector, self.params))
            return basis.cast_like(result, vector)

        return product


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Sharded:
    """`matvec` with its operand and its result constrained to a layout."""

    matvec: Any
    flat_sharding: tuple = dataclasses.field(metadata={"static": True})

    def __call__(self, vector):
        return self._constrain(self.matvec)(vector)

    def linearize(self) -> Callable:
        """As that of the products inside, constrained."""
        return self._constrain(linearize(self.matvec))

    def _constrain(self, matvec):
        leaves, structure = self.flat_sharding
        sharding = structure.unflatten(leaves)

        def product(vector):
            return basis.place(matvec(basis.place(vector, sharding)), sharding)

        return product


@jax.jit
def _apply(curvature, vector):
    with jax.default_matmul_precision("highest"):
        return curvature.linearize()(vector)


def check_scalar(value):
    """Raises TypeError unless what a `value_fn` returned is a real scalar."""
    leaves = jax.tree.leaves(value)
    leaves = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves]
    ok = len(leaves) == 1 and leaves[0].shape == ()
    if not ok or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        got = [f"{x.dtype}{list(x.shape)}" for x in leaves]
        raise TypeError(
            f"value_fn returned {', '.join(got) or 'nothing'}; it must return one real "
            "scalar, the loss at the given parameters."
        )


def _check_objective(objective, name):
    if not isinstance(objective, Objective):
        raise TypeError(
            f"{name} needs a bulk_sgd.Objective, which knows where the model ends and "
            f"the loss begins; got {type(objective).__name__}."
        )
