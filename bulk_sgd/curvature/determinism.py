"""A check that a loss is a function of the parameters alone."""

import jax
import jax.numpy as jnp

from bulk_sgd import checks, functions
from bulk_sgd.curvature import second_derivatives
from bulk_sgd.curvature.hessian import check_scalar, hessian
from bulk_sgd.curvature.operators import linearize
from bulk_sgd.linalg import basis

_CHANGES = (
    "Common causes: dropout or other noise whose generator advances, a loader that "
    "gives another batch at every call, batch normalisation that updates its averages. "
    "Use the network in evaluation mode, and the same data at every call, as an "
    "Objective does."
)
_ASYMMETRY = (
    "Common causes: a custom derivative that is not the derivative, such as a straight-"
    "through estimator or an error in a jax.custom_vjp."
)


def check_deterministic(value_fn, params, *, tol: float | None = None, seed: int = 0):
    """Raises an error unless a loss has one symmetric Hessian, the same at every call.

    A solver takes tens of products and assumes that they belong to one matrix. If the
    loss changes between them, the result looks like a spectrum but means nothing.

    The check compares three pairs, as curvlinops does (Dangel et al., 2025):

    - two values of the loss, since a hidden random generator or loader may advance;
    - two products with one random vector, each traced anew;
    - ⟨u, Hv⟩ and ⟨v, Hu⟩, which differ if the gradient is not the gradient of a scalar,
      as with straight-through estimators or a wrong `jax.custom_vjp`.

    The check does not detect a loss whose examples affect each other, as under batch
    normalisation in training mode. Such a loss has one Hessian for a given batch; the
    Hessian changes only if the batch is cut into microbatches.

    Call the check once before a loop. It costs two evaluations of the loss, three
    products and two compilations. Call it outside of `jit`. Inside, JAX would trace the
    loss only once and so hide a change.

    Args:
      value_fn: `value_fn(params) -> scalar`, an `Objective` or any function.
      params: pytree of floating point arrays, the point θ.
      tol: largest relative difference allowed; by default √ε of the coarsest dtype of
        the params, 3·10⁻⁴ in float32. Sums in a different order, on an accelerator or
        from a loader that shuffles the same data, differ by about 10⁻⁶. Dropout and
        different batches cause differences of 10⁻² and more. Two values of the loss may
        differ by `tol` times their size. A size below `tol` counts as `tol`: scale up a
        loss that is far below it.
      seed: seed of the random vectors.

    Raises:
      ValueError: if a difference is too large; the message lists common causes. Also if
        the params are traced or not floating point arrays.
      TypeError: if `value_fn` does not return a real scalar.

    Example:
      >>> import itertools, jax.numpy as jnp, bulk_sgd
      >>> loader = itertools.cycle([jnp.ones(2), jnp.zeros(2)])
      >>> loss = lambda w: jnp.sum((w - next(loader)) ** 2)
      >>> bulk_sgd.check_deterministic(loss, jnp.zeros(2))  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: value_fn changes from call to call: at the same params it gave ...
    """
    checks.floating("params", params)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(params)):
        raise ValueError(
            "params are traced; check_deterministic must be called outside of jit and "
            "other transformations, where a loss can change between calls."
        )
    if tol is None:
        tol = max(jnp.finfo(x.dtype).eps for x in jax.tree.leaves(params)) ** 0.5
    checks.at_least("tol", tol, 0)
    checks.integer("seed", seed, 0)
    functions.check("value_fn", value_fn, "params")

    values = [functions.call("value_fn", value_fn, params) for _ in range(2)]
    check_scalar(values[0])
    first, second = map(float, values)
    # Rounding is large relative to a loss near zero; the products tell more there.
    scale = max(abs(first), abs(second), tol)
    _refuse_beyond(
        tol,
        _gap(values[0], values[1], scale),
        f"value_fn changes from call to call: at the same params it gave {first} and "
        f"{second}",
        _CHANGES,
    )

    matvec = hessian(value_fn, params)
    u, v = (
        basis.random_normal(key, params)
        for key in jax.random.split(jax.random.key(seed))
    )

    def products(*vectors):
        # A new function at each call, so that `jit` does not reuse an earlier trace.
        apply = jax.jit(lambda matvec, v: linearize(matvec)(v))
        with jax.default_matmul_precision("highest"):
            return [apply(matvec, vector) for vector in vectors]

    (image,), (again, other) = products(v), products(v, u)
    size = float(basis.norm(image) + basis.norm(other)) / 2 or 1.0
    _refuse_beyond(
        tol,
        _gap(image, again, size),
        "the Hessian of value_fn changes from call to call: two products with one "
        "vector differ",
        _CHANGES,
    )
    # For a random u, ⟨u, x⟩ is about ‖x‖ in any dimension, so `size` is the scale here.
    _refuse_beyond(
        max(tol, 10 * second_derivatives.error(params))
        if matvec.mode == second_derivatives.DIFFERENCES
        else tol,
        _gap(basis.dot(u, image), basis.dot(v, other), size),
        "the Hessian of value_fn is not symmetric: ⟨u, Hv⟩ and ⟨v, Hu⟩ differ",
        _ASYMMETRY,
    )


def _gap(x, y, scale: float) -> float:
    """‖x − y‖ over a scale, zero if equal; NaN equals NaN, and inf equals inf."""
    same = jax.tree.map(lambda a, b: jnp.array_equal(a, b, equal_nan=True), x, y)
    if all(map(bool, jax.tree.leaves(same))):
        return 0.0
    return float(basis.norm(basis.subtract(x, y))) / scale


def _refuse_beyond(tol: float, gap: float, what: str, causes: str):
    if not gap <= tol:  # NaN is beyond
        raise ValueError(
            f"{what} (relative difference {gap:.1e}, at most {tol:.1e} is allowed). "
            f"{causes}"
        )
