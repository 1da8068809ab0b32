"""The matrix P in the step θ ← θ − η P⁻¹ m of an optimizer, from its state."""

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from bulk_sgd import checks
from bulk_sgd.curvature.kronecker import Kronecker
from bulk_sgd.linalg import basis, matrices, units


def adam_preconditioner(
    state, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, eps_root: float = 0.0
):
    """Returns the diagonal of P in Adam's last step θ ← θ − η P⁻¹ m.

    After t steps of `optax.adam` or `adamw`, P = (1 − b1^t) (√(v̂ + eps_root) + eps).
    Here m is the average of the gradients, not bias-corrected, and v̂ the
    bias-corrected average of their squares. The formula does not hold for
    `optax.nadam`, which replaces m. In float32, the square of a gradient entry below
    10⁻¹⁹ underflows, and the square of one above 10¹⁹ overflows.

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
    found = _only(state, optax.ScaleByAdamState, "Adam", "optax.adam or optax.adamw")
    count = jnp.maximum(found.count, 1)  # 0 before the first step
    corrected = optax.tree.bias_correction(found.nu, b2, count)
    average = 1 - b1**count
    return jax.tree.map(
        lambda v: (average * (jnp.sqrt(v + eps_root) + eps)).astype(v.dtype), corrected
    )


def muon_preconditioner(
    state,
    ns_steps: int = 5,
    eps: float = 1e-8,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    adam_eps_root: float = 0.0,
    *,
    adam_scale: float = 1.0,
    consistent_rms: float | None = None,
    muon_weight_dimension_numbers=None,
):
    r"""Returns P in Muon's last step θ ← θ − η P⁻¹ M, with M its momentum.

    For a matrix M = U S Vᵀ, `optax.contrib.muon` steps by about c U Vᵀ, where c depends
    on the shape. Hence P = (M Mᵀ)^¼ ⊗ (Mᵀ M)^¼ / c, a `Kronecker`: its eigenvalue for
    u_i v_jᵀ is √(s_i s_j) / c. Muon's iteration multiplies small singular values by
    g/‖M‖_F, where g = 3.4445⁵ = 485 by default, so singular values below ‖M‖_F/g do not
    reach 1. P therefore uses at least (‖M‖_F + eps)/g for every s_i. If M is not
    square, the larger of M Mᵀ and Mᵀ M has more eigenvectors than M has singular
    values. For each extra eigenvector, P uses (‖M‖_F + eps)/g in place of s_i.
    Parameters that Muon leaves to Adam have the diagonal of `adam_preconditioner`.

    The iteration only approximates U Vᵀ: its singular values lie between about 0.7 and
    1.2. With `nesterov`, Muon orthogonalises M plus one more gradient, not M alone, and
    the parameters left to Adam follow Nadam. The state does not hold this gradient, so
    P leaves it out. P holds only for `adaptive=False` and
    `preconditioning="frobenius"`.

    Each m × n matrix takes a singular value decomposition, about 20 m n min(m, n)
    operations, and three times its memory. If it is split over devices, it is gathered.

    Args:
      state: state of the optimizer after its update, alone or inside other states.
      ns_steps: as given to the optimizer, like all arguments below but `adam_scale`.
      eps: of Muon and of Adam.
      adam_b1: of Adam.
      adam_b2: of Adam.
      adam_eps_root: of Adam.
      adam_scale: `learning_rate / adam_learning_rate`, if the optimizer has both.
      consistent_rms: sets c for a matrix with m inputs and n outputs. With None, c is
        √max(1, n / m); with a number, c is this number times √max(m, n).
      muon_weight_dimension_numbers: which axes are rows and which are columns; by
        default axis 0 has the rows and axis 1 the columns.

    Returns:
      A pytree like the parameters. Its leaves are `Kronecker`s, in float32, or float64
      if the momentum is, and arrays where Muon leaves a parameter to Adam.

    Raises:
      ValueError: unless `state` contains exactly one state of Muon, or if an argument
        is out of its range.

    Example:
      >>> import jax.numpy as jnp, optax, bulk_sgd
      >>> muon, params = optax.contrib.muon(0.1), {"kernel": jnp.zeros((2, 2))}
      >>> grads = {"kernel": jnp.diag(jnp.array([8.0, 2.0]))}
      >>> updates, state = muon.update(grads, muon.init(params), params)
      >>> scale = bulk_sgd.muon_preconditioner(state)
      >>> matvec = bulk_sgd.hessian(lambda p: 2 * jnp.sum(p["kernel"] ** 2), params)
      >>> scaled = bulk_sgd.preconditioned(matvec, scale)  # M is 1/20 of the gradient
      >>> print(scaled({"kernel": jnp.ones((2, 2))})["kernel"].round(3))
      [[10. 20.]
       [20. 40.]]
    """
    checks.integer("ns_steps", ns_steps, 1)
    checks.at_least("adam_scale", adam_scale, 0, above=True)
    found = _only(state, contrib.MuonState, "Muon", "optax.contrib.muon")
    adam = adam_preconditioner(state, adam_b1, adam_b2, eps, adam_eps_root)
    adam = jax.tree.map(lambda d: (adam_scale * d).astype(d.dtype), adam)
    slopes = found.ns_coeffs[..., 0]
    gain = slopes**ns_steps if slopes.ndim == 0 else jnp.prod(slopes)
    hidden = lambda x: isinstance(x, optax.MaskedNode)
    merged = jax.tree.map(
        lambda m, d: d if hidden(m) else m, found.mu, adam, is_leaf=hidden
    )
    numbers = muon_weight_dimension_numbers or contrib.MuonDimensionNumbers()
    sides = matrices.sides(merged, 1, numbers)
    leaves, treedef = jax.tree.flatten(merged)
    is_muon = [not hidden(m) for m in jax.tree.leaves(found.mu, is_leaf=hidden)]
    return treedef.unflatten(
        _orthogonalizing(leaf, side, gain, eps, consistent_rms) if muon else leaf
        for leaf, side, muon in zip(leaves, sides, is_muon)
    )


@jax.default_matmul_precision("highest")
def _orthogonalizing(momentum, sides, gain, eps, consistent_rms) -> Kronecker:
    """P of Muon for one parameter."""
    moved = sides.matrices(basis.widen(momentum)[None])[0]
    fan_in, fan_out = moved.shape[1:]
    factor = max(1, fan_out / fan_in) ** 0.5
    if consistent_rms is not None:
        factor = max(fan_in, fan_out) ** 0.5 * consistent_rms
    if fan_in < fan_out:  # `Kronecker` has all eigenvectors of the shorter side
        moved, sides = moved.mT, matrices.Sides(sides.columns, sides.rows)
    left, found, right = jnp.linalg.svd(moved, full_matrices=False)
    least = (units.length(found, -1)[:, None] + eps) / gain
    columns = jnp.maximum(found, least)
    rows = columns if fan_in == fan_out else jnp.concatenate([columns, least], axis=1)
    values = jnp.sqrt(rows)[:, :, None] * jnp.sqrt(columns)[:, None, :] / factor
    return Kronecker(left, right.mT, values, momentum.shape, sides)


def _only(state, kind, name, makers):
    """The one state of a `kind` inside of `state`."""
    is_kind = lambda x: isinstance(x, kind)
    found = [x for x in jax.tree.leaves(state, is_leaf=is_kind) if is_kind(x)]
    if len(found) != 1:
        raise ValueError(
            f"state has {len(found)} states of {name} in it; it must have exactly one, "
            f"from {makers}."
        )
    return found[0]
