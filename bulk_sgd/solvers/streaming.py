r"""A dominant subspace tracked along training, from the mini-batches at hand.

Lanczos solves for the eigenspace of one matrix; training asks for that of a slowly
moving one, of which every mini-batch gives a noisy sample. Averaging the samples over
steps is Oja's rule (Oja, *A simplified neuron model as a principal component
analyzer*, 1982), the streaming principal component analysis of Hessians:

  V ← orth(|Λ| V + ρ (H_b V − Λ V)),

with H_b the Hessian of the current mini-batch and Λ the running Rayleigh quotients,
which make the gain ρ free of units. Where Λ is positive that is the average
(1 − ρ) Λ V + ρ H_b V; where it is negative the vector still climbs to larger
eigenvalues. Its price does not depend on the size of the data set, and averaging also
smooths the swing of the Hessian from one iterate to the next, which a basis solved
exactly one step before does not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.curvature import operators
from bulk_sgd.linalg import basis
from bulk_sgd.linalg.branches import any_lane, own_lane
from bulk_sgd.solvers.subspace import Solver, Subspace

# What a vector keeps of itself at least, in lengths of its product: enough for it to be
# orthogonal to 1e-5 where the rest is rounding, and little to the first sweeps.
_LEAST = 0.01


class StreamingState(NamedTuple):
    """State of the `streaming` solver.

    Attributes:
      count: int32, calls so far.
      quotients: `(k, k)`, running average of V H_b Vᵀ.
      noise: `(k,)`, running average of the squared part of H_b v_i outside of span V.
    """

    count: jax.Array
    quotients: jax.Array
    noise: jax.Array


def streaming(columns: int = 1, *, every: int = 1, gain: float = 0.1) -> Solver:
    """Solver that averages mini-batch Hessians over steps (Oja's rule).

    Use it with `refresh_every=1` and the loss of the current mini-batch as `value_fn`.
    A call multiplies `columns` of the k basis vectors, in turn, by the Hessian of that
    loss, mixes each product into its vector with weight ρ, and orthonormalises what
    changed. ρ starts at 1 and falls as one over the number of sweeps to `gain`, so that
    a start from nothing is a power iteration and the end an average over about
    1/`gain` sweeps. One Jacobi rotation per call keeps the vectors close to the
    eigenvectors, in order.

    The vectors are those of the largest algebraic eigenvalues, as with `lanczos`, where
    no eigenvalue is below −(2 / ρ − 1) λ_k: at ρ = 0.1, −19 λ_k. In the first sweeps,
    while ρ is near 1, negative directions can enter; they leave as it falls.

    Attributes of the result: `eigenvalues` are running Rayleigh quotients;
    `residuals` are standard errors √(ρ / (2 − ρ)) ‖H_b v − V Vᵀ H_b v‖ of the averaged
    products, an estimate of ‖H v − λ v‖ that takes batches for independent.

    Error and cost: `docs/solvers.md`.

    Args:
      columns: basis vectors multiplied per call, a divisor of the rank, or 0 for all.
      every: act on one call in so many; the others cost nothing.
      gain: final weight ρ of a new product, above 0 and at most 1. Larger follows
        faster, smaller averages more.

    Returns:
      A `Solver` with a `StreamingState`.

    Raises:
      ValueError: if an argument is out of its range, at `init` if `columns` does not
        divide the rank.

    Example:
      >>> import bulk_sgd
      >>> tx = bulk_sgd.project_bulk(rank=10, solver=bulk_sgd.streaming())
    """
    checks.integer("columns", columns, 0)
    checks.integer("every", every, 1)
    checks.between("gain", gain, 1e-6, 1)

    def init(params, rank):
        if columns and rank % columns:
            raise checks.ArgumentError(
                "columns",
                f"is {columns}; it must divide the rank, {rank}, or be 0 for all.",
            )
        dtype = basis.working_dtype(params)
        return StreamingState(
            count=jnp.zeros((), jnp.int32),
            quotients=jnp.zeros((rank, rank), dtype),
            noise=jnp.zeros(rank, dtype),
        )

    def solve(matvec, subspace, state, updates, key):
        rank = subspace.rank
        width = columns or rank
        turn, sweep = state.count // every, rank // width
        start = (turn % sweep) * width
        weight = jnp.maximum(gain, 1 / (1 + turn // sweep)).astype(state.noise.dtype)
        acts = state.count % every == 0
        rows = subspace.eigenvectors

        def move():
            # Which row of the block is rotated with one outside of it.
            turning = (turn // sweep) % width
            block = basis.block(rows, start, width)
            seeded = _seeded(block, rows, updates, key)
            moved = _move(matvec, rows, seeded, start, turning, state, weight)
            if every == 1:
                return moved
            *moved, finite, quotients, noise = moved
            # The lanes that only join in under `vmap` keep what they have.
            quotients = jnp.where(acts, quotients, state.quotients)
            noise = jnp.where(acts, noise, state.noise)
            return *moved, finite & acts, quotients, noise

        def rest():
            old = basis.block(rows, start, width)
            other = basis.row(rows, 0)
            nothing = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
            return old, other, *nothing, state.quotients, state.noise

        moved = move() if every == 1 else jax.lax.cond(any_lane(acts), move, rest)
        block, other, partner, finite, quotients, noise = moved
        rows = basis.put(rows, start, block, finite)
        if width < rank:
            other = jax.tree.map(lambda x: x[None], other)
            rows = basis.put(rows, partner, other, finite)
        found = Subspace(
            eigenvalues=jnp.diag(quotients),
            eigenvectors=rows,
            residuals=jnp.sqrt(weight / (2 - weight) * noise),
            converged=finite | ~acts,
            num_matvecs=acts * jnp.int32(width),
        )
        return found, StreamingState(state.count + 1, quotients, noise)

    return Solver(init, solve, guarded=True)


def _move(matvec, rows, block, start, turning, state: StreamingState, weight):
    """Oja's rule on a block of rows, and a rotation towards the eigenvectors.

    Returns:
      The new rows of the block, the one that `turning` was rotated with and the index
      of that one, whether all is finite and to be used, the quotients and the noise.
    """
    rank, width = len(state.quotients), basis.num_rows(block)
    index, zero = jnp.arange(rank), jnp.zeros_like(start)
    beyond = (index < start) | (index >= start + width)
    partner = _partner(state.quotients, start + turning, beyond)
    product = basis.map_rows(operators.linearize(matvec), block)
    inside = basis.gram(product, block)
    if width < rank:
        # A row that was just seeded is not among `rows` yet.
        inside = jax.lax.dynamic_update_slice(
            basis.gram(product, rows), inside, (zero, start)
        )
    squares = _squared_norms(product)
    outside = squares - jnp.sum(inside**2, axis=1)

    old = jax.lax.dynamic_slice(state.quotients, (start, zero), (width, rank))
    slab = old + weight * (inside - old)
    quotients = jax.lax.dynamic_update_slice(state.quotients, slab, (start, zero))
    quotients = jax.lax.dynamic_update_slice(quotients, slab.T, (zero, start))
    variance = jax.lax.dynamic_slice(state.noise, (start,), (width,))
    variance = variance + weight * (jnp.maximum(outside, 0) - variance)
    noise = jax.lax.dynamic_update_slice(state.noise, variance, (start,))

    own = jnp.diag(jax.lax.dynamic_slice(old, (zero, start), (width, width)))
    # The magnitude: a negative quotient as it stands would turn its vector round at
    # every step, away from all directions of larger eigenvalues.
    stays = jnp.abs(own) - weight * own
    # Where H has fewer directions than V, all of a product lies along other rows: what
    # is left of it is rounding; where H has none, no row is found.
    stays = jnp.maximum(stays, _LEAST * weight * jnp.sqrt(squares))
    mixed = jax.tree.map(lambda v, y: _over(stays, v) * v + weight * y, block, product)
    if width < rank:
        overlap = jnp.where(beyond, weight * inside, 0)
        mixed = basis.subtract(mixed, basis.combine(overlap, rows))
        # As a rule that is little, and with inner products at hand one pass is as good
        # as two. Where less is left than was removed, rounding has grown.
        forms = jnp.diag(jax.lax.dynamic_slice(inside, (zero, start), (width, width)))
        before = stays**2 + weight * (2 * stays * forms + weight * squares)
        short = 2 * jnp.sum(overlap**2, axis=1) > before

        def again(_, mixed):
            part = jnp.where(short[:, None] & beyond, basis.gram(mixed, rows), 0)
            return basis.subtract(mixed, basis.combine(part, rows))

        # A loop works in place.
        passes = any_lane(jnp.any(short)).astype(jnp.int32)
        mixed = jax.lax.fori_loop(0, passes, again, mixed)
    turned = basis.orthonormal(mixed)

    if width > 1:
        turned, quotients, noise = _diagonalize(turned, quotients, noise, start)
    other = basis.row(rows, partner)
    if width < rank:
        first, other, quotients, noise = _jacobi(
            basis.row(turned, turning), other, quotients, noise, start + turning,
            partner,
        )  # fmt: skip
        turned = basis.set_row(turned, turning, first)
    finite = jnp.all(jnp.isfinite(slab)) & jnp.all(jnp.isfinite(outside))
    # That both are in it also orders them before the first write, so that XLA need not
    # copy the basis for the sake of the second.
    lengths = _squared_norms(turned)
    finite &= jnp.all((lengths > 0.5) | (lengths == 0))
    finite &= jnp.isfinite(basis.norm(other))
    quotients = jnp.where(finite, quotients, state.quotients)
    noise = jnp.where(finite, noise, state.noise)
    return turned, other, partner, finite, quotients, noise


def _partner(quotients, index, allowed):
    """The row that row `index` most needs a rotation with.

    That is where the off-diagonal quotient or the inversion of the order is largest.
    """
    rows = jnp.arange(len(quotients))
    values = jnp.diag(quotients)
    gap = jnp.where(rows > index, values - values[index], values[index] - values)
    need = jnp.abs(quotients[index]) + jnp.maximum(gap, 0)
    return jnp.argmax(jnp.where(allowed, need, -1)).astype(jnp.int32)


def _seeded(block, rows, updates, key):
    """The block with its rows of zeros replaced: the update first, then noise."""
    missing = _squared_norms(block) == 0

    def fill():
        keys = jax.random.split(key, missing.size)
        noise = basis.map_rows(lambda key: basis.random_normal(key, updates), keys)
        length = basis.norm(updates)
        scale = jnp.where(length > 0, jnp.sqrt(basis.size(updates)) / length, 0)
        first = jnp.arange(missing.size) == 0

        def seed(old, noise, update):
            update = _over(first, noise) * (scale * update.astype(noise.dtype))
            return jnp.where(_over(missing, old) > 0, 0.1 * noise + update, old)

        def outside(_, fresh):
            # Rows of the block that there are, are among `rows`.
            overlap = jnp.where(missing[:, None], basis.gram(fresh, rows), 0)
            fresh = basis.subtract(fresh, basis.combine(overlap, rows))
            return basis.orthonormal(fresh)

        fresh = jax.tree.map(seed, block, noise, updates)
        fresh = jax.lax.fori_loop(0, 2, outside, fresh)  # twice is enough
        return basis.where(own_lane(jnp.any(missing)), fresh, block)

    return jax.lax.cond(any_lane(jnp.any(missing)), fill, lambda: block)


def _squared_norms(block):
    return basis.map_rows(lambda row: basis.dot(row, row), block)


def _over(values, rows):
    """A value per row, shaped to multiply the rows of a leaf."""
    return values.astype(rows.dtype).reshape(-1, *(1,) * (rows.ndim - 1))


def _diagonalize(block, quotients, noise, start):
    """Rayleigh-Ritz within a block: its rows rotated to the eigenvectors."""
    width = basis.num_rows(block)
    own = jax.lax.dynamic_slice(quotients, (start, start), (width, width))
    _, vectors = jnp.linalg.eigh(own)
    turn = vectors[:, ::-1].T
    identity = jnp.eye(len(quotients), dtype=quotients.dtype)
    rotation = jax.lax.dynamic_update_slice(identity, turn, (start, start))
    turned = basis.combine(turn, block)
    return turned, rotation @ quotients @ rotation.T, rotation**2 @ noise


def _jacobi(row, other, quotients, noise, index, partner):
    """The two rows after the rotation that makes their mutual quotient zero."""
    # The larger quotient goes to the row that comes first.
    forward = index < partner
    first, second = jnp.minimum(index, partner), jnp.maximum(index, partner)
    angle = 0.5 * jnp.arctan2(
        2 * quotients[first, second],
        quotients[first, first] - quotients[second, second],
    )
    # Rows change places exactly, lest one of zeros become one of rounding.
    places = (quotients[first, second] == 0) & (angle > 0)
    c = jnp.where(places, 0, jnp.cos(angle))
    s = jnp.where(forward, 1, -1) * jnp.sin(angle)
    turned = jax.tree.map(lambda x, y: c * x + s * y, row, other)
    rest = jax.tree.map(lambda x, y: c * y - s * x, row, other)
    rotation = jnp.eye(len(quotients), dtype=quotients.dtype)
    rotation = rotation.at[index, index].set(c).at[partner, partner].set(c)
    rotation = rotation.at[index, partner].set(s).at[partner, index].set(-s)
    return turned, rest, rotation @ quotients @ rotation.T, rotation**2 @ noise
