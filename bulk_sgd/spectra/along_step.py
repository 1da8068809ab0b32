r"""What a step does to the loss, as a whole, in the subspace and in the bulk.

Let u be an update at the parameters θ, g and H the gradient and the Hessian of the loss
L there, and P the projector onto the dominant subspace.

  predicted change      g·v + ½ vᵀ H v for v = Pu and v = u − Pu; for u itself it is
                        their sum plus the cross term (Pu)ᵀ H (u − Pu), which is zero
                        if P belongs to eigenvectors of this H
  measured change       L(θ + v) − L(θ)
  directional sharpness vᵀ H v / ‖v‖² for v = u and v = g (Pan and Li, *Toward
                        Understanding Why Adam Converges Faster Than SGD for
                        Transformers*, arXiv 2306.00204, without the ‖v‖²)
  critical scale        s_c > 0 with L(θ + s_c u) = L(θ)
  critical sharpness    λ_c = 2 / η_c, with η_c = s_c η the learning rate above which
                        the step raises the loss (Kalra et al., *A Scalable Measure of
                        Loss Landscape Curvature for Analyzing the Training Dynamics of
                        LLMs*, arXiv 2601.16979)

On a quadratic loss s_c = −2 g·u / uᵀ H u. For gradient descent, u = −ηg, λ_c is then
the directional sharpness of g.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.curvature.hessian import check_loss, hessian
from bulk_sgd.curvature.operators import as_pytree, linearize, sharded
from bulk_sgd.linalg import basis
from bulk_sgd.solvers.subspace import Subspace, check_subspace

_TOL, _MAX_LOSSES = 1e-2, 20


class StepMeasures(NamedTuple):
    """Measurements of a step by u from the parameters θ, all scalars.

    L is the loss, g and H are its gradient and Hessian at θ, and P is the projector
    onto the dominant subspace. A negative change is a decrease. Measured changes are
    differences of losses, so their error is about the rounding unit times the loss.

    Attributes:
      predicted_dominant: g·Pu + ½ (Pu)ᵀ H (Pu).
      predicted_bulk: the same for u − Pu.
      predicted_cross: (Pu)ᵀ H (u − Pu).
      measured_dominant: L(θ + Pu) − L(θ).
      measured_bulk: L(θ + u − Pu) − L(θ).
      measured_whole: L(θ + u) − L(θ).
      sharpness_update: uᵀ H u / ‖u‖².
      sharpness_gradient: gᵀ H g / ‖g‖².
      critical_scale: the s > 0 with L(θ + s u) = L(θ), to 1 % and rounding (see
        `critical_sharpness`), from at most 20 losses; NaN if u is not a direction of
        descent, or if s lies outside about 10⁻³ to 10³.
    """

    predicted_dominant: jax.Array
    predicted_bulk: jax.Array
    predicted_cross: jax.Array
    measured_dominant: jax.Array
    measured_bulk: jax.Array
    measured_whole: jax.Array
    sharpness_update: jax.Array
    sharpness_gradient: jax.Array
    critical_scale: jax.Array


def step_measures(
    value_fn, params, updates, subspace: Subspace, *, mode: str = "auto", sharding=None
) -> StepMeasures:
    """Measures what an update does to a loss, as a whole and split by a subspace.

    The cost is a gradient, three products and at most 22 further losses. If the update
    is zero, all fields except `measured_whole` and `sharpness_gradient` are NaN.

    Args:
      value_fn: `value_fn(params) -> scalar`, such as an `Objective`.
      params: pytree of floating point arrays, the point θ.
      updates: pytree like `params`, the u that optax would add to them.
      subspace: the dominant subspace, dense or in factors.
      mode: as in `hessian`.
      sharding: layout of the products over devices, as in `sharded`.

    Returns:
      The `StepMeasures`, in float32, or float64 if a parameter is float64.

    Raises:
      TypeError: if `value_fn` does not return a real scalar.
      ValueError: if an argument has the wrong form.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> loss = lambda x: 50 * x[0] ** 2 + 0.5 * x[1] ** 2  # sharp, flat
      >>> x = jnp.array([0.1, 1.0])
      >>> pairs = bulk_sgd.top_eigenpairs(bulk_sgd.hessian(loss, x), x, 1, tol=1e-5)
      >>> found = bulk_sgd.step_measures(loss, x, -0.015 * jax.grad(loss)(x), pairs)
      >>> print(f"{found.measured_dominant:.3f} {found.measured_bulk:.3f}")
      -0.375 -0.015
    """
    matvec = sharded(hessian(value_fn, params, mode=mode), sharding)
    checks.vector("updates", updates, params)
    check_subspace("subspace", subspace)
    return _step_measures(as_pytree(value_fn), matvec, params, updates, subspace)


@functools.partial(jax.jit, inline=True)
@jax.default_matmul_precision("highest")
def _step_measures(value_fn, matvec, params, updates, subspace):
    apply = linearize(matvec)
    start, gradient = jax.value_and_grad(value_fn)(params)
    gradient, whole = basis.widen(gradient), basis.widen(updates)
    # Quadratic forms of unit vectors: squares of small updates leave float32's range.
    length = basis.norm(whole)
    unit = basis.divide(whole, length)
    inside = subspace.project(unit)
    outside = basis.subtract(unit, inside)
    image = apply(outside)
    forms = [basis.dot(inside, apply(inside)), basis.dot(outside, image)]
    cross = basis.dot(inside, image)
    slopes = [basis.dot(gradient, part) for part in (inside, outside)]
    predicted = [
        length * (slope + length * form / 2) for slope, form in zip(slopes, forms)
    ]
    loss = functools.partial(_loss_along, value_fn, params)
    first = loss(whole, 1.0)
    scale = _critical_scale(functools.partial(loss, whole), start, first)
    return StepMeasures(
        *predicted,
        length * (length * cross),
        *(loss(part, length) - start for part in (inside, outside)),
        first - start,
        sum(forms) + 2 * cross,
        directional_sharpness(apply, gradient),
        jnp.where(sum(slopes) < 0, scale, jnp.nan),
    )


def directional_sharpness(matvec, vector):
    """vᵀ H v / ‖v‖² of an operator H, a scalar; NaN for a vector of zeros."""
    unit = basis.unit(basis.widen(vector))
    return basis.dot(unit, matvec(unit))


def critical_sharpness(
    value_fn,
    params,
    updates,
    learning_rate=1.0,
    *,
    tol: float = _TOL,
    max_losses: int = _MAX_LOSSES,
):
    """Returns 2 / η_c, with η_c the learning rate above which a step raises the loss.

    The search needs only losses, no derivatives (Kalra et al., arXiv 2601.16979).
    Starting from the given step, it doubles or halves the rate until a step lowers the
    loss and a step twice as large does not. Then it bisects. On a quadratic loss with
    gradient g and Hessian H the result is uᵀ H u / (−η g·u). For u = −ηg this is the
    directional sharpness gᵀ H g / ‖g‖².

    A step counts as raising the loss only if L(θ + s u) exceeds L(θ) by more than four
    rounding units of L(θ). This adds about ε L(θ) / D to the relative error `tol`, with
    ε the rounding unit and D the largest decrease along u. Losses alone cannot tell a
    direction of descent from a step over a barrier, where the loss rises first.
    `step_measures` can, because it knows the gradient.

    Args:
      value_fn: `value_fn(params) -> scalar`, such as an `Objective`.
      params: pytree of floating point arrays, the point θ.
      updates: pytree like `params`, the update u.
      learning_rate: the rate η of this update. With η = 1 the result is 2 / s, where
        L(θ + s u) = L(θ).
      tol: relative width of the last interval around η_c.
      max_losses: the largest number of losses.

    Returns:
      A scalar in float32, or float64 if a parameter is float64. It is NaN if
      none of the steps tried lowers the loss by more than rounding, or if `max_losses`
      is too small.

    Raises:
      TypeError: if `value_fn` does not return a real scalar.
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> loss = lambda x: 50 * x[0] ** 2 + 0.5 * x[1] ** 2
      >>> x, rate = jnp.array([1.0, 0.0]), 0.003
      >>> step = -rate * jax.grad(loss)(x)
      >>> found = bulk_sgd.critical_sharpness(loss, x, step, rate)
      >>> print(bool(abs(found - 100) < 1))
      True
    """
    checks.floating("params", params)
    check_loss(value_fn, params)
    checks.vector("updates", updates, params)
    checks.at_least("learning_rate", learning_rate, 0)
    checks.between("tol", tol, 0, 1)
    checks.integer("max_losses", max_losses, 2, static=False)
    options = learning_rate, tol, max_losses
    return _critical_sharpness(as_pytree(value_fn), params, updates, *options)


@functools.partial(jax.jit, inline=True)
@jax.default_matmul_precision("highest")
def _critical_sharpness(value_fn, params, updates, learning_rate, tol, max_losses):
    loss = functools.partial(_loss_along, value_fn, params, basis.widen(updates))
    start = value_fn(params)
    scale = _critical_scale(loss, start, loss(1.0), tol, max_losses)
    return 2 / (learning_rate * scale)


def _loss_along(value_fn, params, direction, scale):
    moved = jax.tree.map(lambda x, d: x + scale * d, params, direction)
    return value_fn(basis.cast_like(moved, params)).astype(basis.working_dtype(params))


def _critical_scale(loss, start, first, tol=_TOL, max_losses=_MAX_LOSSES):
    """The s > 0 with loss(s) = loss(0), given loss(0) and loss(1); NaN if not found."""
    eps = max(float(jnp.finfo(x.dtype).eps) for x in (start, first))
    slack = 4 * eps * jnp.abs(start)

    def narrowed(low, high, fell, scale, value):
        falls = value <= start + slack  # not where the loss is NaN
        ends = jnp.where(falls, scale, low), jnp.where(falls, high, scale)
        return *ends, fell | (value < start - slack)

    def solved(low, high):
        return (low > 0) & jnp.isfinite(high) & (high - low <= tol * high)

    def unsolved(carry):
        low, high, _, count = carry
        return ~solved(low, high) & (count < max_losses)

    def step(carry):
        low, high, fell, count = carry
        scale = jnp.where(jnp.isinf(high), 2 * low, (low + high) / 2)
        return *narrowed(low, high, fell, scale, loss(scale)), count + 1

    one = jnp.ones_like(first)
    begun = *narrowed(0 * one, jnp.inf * one, False, one, first), 2
    low, high, fell, _ = jax.lax.while_loop(unsolved, step, begun)
    return jnp.where(solved(low, high) & fell, (low + high) / 2, jnp.nan)
