r"""A dominant subspace averaged along training from the Hessians of mini-batches.

Training changes the Hessian slowly, and every mini-batch gives a noisy sample of it.
Oja's rule averages these samples over steps (Oja, *A simplified neuron model as a
principal component analyzer*, 1982). It is a streaming principal component analysis:

  V ← orth(V |Λ| + ρ (H_b V − V Λ)).

V = [v_1 … v_k] is the basis, H_b the Hessian of the current mini-batch, and ρ the gain.
The diagonal matrix Λ holds running averages of the Rayleigh quotients v_iᵀ H_b v_i.
They make ρ a pure number: where Λ is positive, the new vectors are the average
(1 − ρ) V Λ + ρ H_b V. Where Λ is negative, |Λ| still lets a vector approach larger
eigenvalues. The cost does not depend on the size of the data set. The average also
smooths the oscillation of the Hessian from step to step. A basis solved exactly one
step before is exposed to it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.linalg import basis, branches, ranks
from bulk_sgd.linalg.factors import zeros as factored_zeros
from bulk_sgd.solvers import factored_oja, oja
from bulk_sgd.solvers.solver import Solver
from bulk_sgd.solvers.subspace import Subspace


class StreamingState(NamedTuple):
    """State of `streaming`, with the basis V = [v_1 … v_k] and the batch Hessian H_b.

    Attributes:
      count: int32, calls so far.
      quotients: `(k, k)`, running average of Vᵀ H_b V.
      noise: `(k,)`, running root mean square of ‖H_b v_i − V Vᵀ H_b v_i‖.
    """

    count: jax.Array
    quotients: jax.Array
    noise: jax.Array


def streaming(
    columns: int = 1,
    *,
    every: int = 1,
    gain: float = 0.1,
    factors: int | None = None,
    axes: Any = None,
) -> Solver:
    """Returns a solver that averages mini-batch Hessians over steps (Oja's rule).

    Use it with `refresh_every=1` and the loss of the current mini-batch as `value_fn`.
    Each call takes the next `columns` of the k basis vectors v_i and multiplies them by
    the Hessian H_b of that loss. It mixes each product into its vector with weight ρ,
    and orthonormalises what changed. One pass over all k vectors is a sweep. ρ is 1/n
    in the n-th sweep, but never below `gain`: the first sweeps are a power iteration,
    later ones average over about 1/`gain` sweeps. One Jacobi rotation per call keeps
    the vectors in order and close to the eigenvectors.

    The vectors belong to the largest algebraic eigenvalues, as with `lanczos`. There is
    one exception: the vector of an eigenvalue below −10 λ_k can enter the basis again
    and again. This bound holds for gains up to 0.1. It is −6 λ_k for a gain of 0.2, and
    −3 λ_k for 0.4. In the first sweeps ρ is near 1, and directions of
    negative curvature can enter; they leave as ρ falls.

    Attributes of the result: `eigenvalues` are running averages of v_iᵀ H_b v_i.
    `residuals` are standard errors of the averaged products,
    √(ρ / (2 − ρ)) ‖H_b v_i − V Vᵀ H_b v_i‖ with V = [v_1 … v_k]. They estimate
    ‖H v_i − λ_i v_i‖ as if batches were independent.

    With `factors`, all vectors share q = `factors` directions in the input space of
    each m × n matrix of parameters (see `bulk_sgd.Subspace.factored`). The basis then
    takes q (m + k n) numbers instead of k m n. The solver first turns the directions
    towards the new product, by one power step. It then applies Oja's rule to the
    coordinates in these directions. It drops the noise outside of them. So the subspace
    is often more accurate than with dense vectors.

    Error and cost: see `docs/solvers.md`.

    Args:
      columns: basis vectors multiplied per call, a divisor of the rank, or 0 for all.
      every: after ten sweeps over the basis, or six if `gain` is at least 0.4, act on
        one call in `every`; the other calls cost nothing.
      gain: final weight ρ of a new product, from 10⁻⁶ to 1. A larger gain follows
        changes faster, a smaller gain averages more.
      factors: the number q of directions that all basis vectors share in each matrix,
        at least 1; by default vectors are dense.
      axes: with `factors`, which axes of a parameter are rows and columns, as in
        `bulk_sgd.Subspace.factored`.

    Returns:
      A `Solver` with a `StreamingState`, or with `factors` a `FactoredStreamingState`.

    Raises:
      ValueError: if an argument is out of its range. At `init`, if `columns` does not
        divide the rank.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> tx = bulk_sgd.project_bulk(rank=10, solver=bulk_sgd.streaming())
      >>> params = {"w": jnp.ones((30, 20)), "b": jnp.ones(20)}
      >>> small = bulk_sgd.project_bulk(rank=10, solver=bulk_sgd.streaming(factors=2))
      >>> for transform in tx, small:
      ...     vectors = transform.init(params).subspace.eigenvectors
      ...     print(sum(leaf.size for leaf in jax.tree.leaves(vectors)))
      6200
      660
    """
    checks.integer("columns", columns, 0)
    checks.integer("every", every, 1)
    checks.between("gain", gain, 1e-6, 1)
    if factors is not None:
        ranks.check_factors(factors)
    step = _step if factors is None else factored_oja.step

    def init(params, rank):
        if columns and rank % columns:
            raise checks.ArgumentError(
                "columns",
                f"is {columns}; it must divide the rank, {rank}, or be 0 for all.",
            )
        dtype = basis.working_dtype(params)
        if factors is not None:
            return factored_oja.init(rank, dtype)
        return StreamingState(
            count=jnp.zeros((), jnp.int32),
            quotients=jnp.zeros((rank, rank), dtype),
            noise=jnp.zeros(rank, dtype),
        )

    def solve(matvec, subspace, state, updates, key):
        rank = subspace.rank
        width = columns or rank
        per_sweep = rank // width
        early = eager_calls(rank, columns, gain)
        later = jnp.maximum(state.count - early, 0)
        turn = jnp.minimum(state.count, early) + later // every
        start, sweep = (turn % per_sweep) * width, turn // per_sweep
        weight = jnp.maximum(gain, 1 / (1 + sweep)).astype(state.noise.dtype)
        acts = every == 1 or later % every == 0
        window = oja.Window(start, width, start + sweep % width, weight)
        known = subspace.eigenvectors, state, window, updates, key, acts
        rows, after, usable = step(matvec, *known)
        found = Subspace(
            eigenvalues=jnp.diag(after.quotients),
            eigenvectors=rows,
            residuals=jnp.sqrt(weight / (2 - weight)) * after.noise,
            converged=usable | jnp.logical_not(acts),
            num_matvecs=acts * jnp.int32(width),
        )
        return found, after._replace(count=state.count + 1)

    zeros = basis.zeros
    if factors is not None:
        zeros = lambda params, rank: factored_zeros(params, rank, factors, axes)
    sweeps = _first_sweeps(gain)
    return Solver(
        init, solve, guarded=True, name="streaming", zeros=zeros, sweeps=sweeps
    )


def eager_calls(rank: int, columns: int, gain: jax.typing.ArrayLike) -> Any:
    """The number of first calls, which act whatever `every` is: an int, or int32."""
    return _first_sweeps(gain) * (rank // (columns or rank))


def _first_sweeps(gain):
    """The sweeps in which basis and eigenvalues are poor: a large gain forgets them."""
    if isinstance(gain, jax.Array):
        return jnp.where(gain >= 0.4, 6, 10).astype(jnp.int32)
    return 6 if gain >= 0.4 else 10  # no array: a program may not have devices yet


def _step(matvec, rows, state: StreamingState, window: oja.Window, updates, key, acts):
    """Returns the moved `rows`, dense, the new state, and whether both are usable."""
    start, width = window.start, window.width

    def move():
        own = basis.take_rows(rows, start, width)
        draw = lambda key: basis.random_normal(key, updates)
        own = oja.seed(own, rows, updates, key, draw, basis.size(updates))
        averages = state.quotients, state.noise
        products = oja.multiply(matvec, own)
        return oja.move(products, rows, own, window, *averages, acts)

    def rest():
        return oja.Moved(
            rows=basis.take_rows(rows, start, width),
            other=basis.row(rows, 0),
            partner=jnp.zeros((), jnp.int32),
            usable=jnp.zeros((), bool),
            quotients=state.quotients,
            noise=state.noise,
            beside=None,
        )

    moved = branches.cond(acts, move, rest)
    rows = basis.put(rows, start, moved.rows, moved.usable)
    if width < len(state.noise):
        other = jax.tree.map(lambda x: x[None], moved.other)
        rows = basis.put(rows, moved.partner, other, moved.usable)
    after = state._replace(quotients=moved.quotients, noise=moved.noise)
    return rows, after, moved.usable
