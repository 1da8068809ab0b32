r"""A dominant subspace tracked along training, from the mini-batches at hand.

Lanczos solves for the eigenspace of one matrix. Training moves that matrix slowly, and
every mini-batch samples it with noise. Averaging the samples over steps is Oja's rule
(Oja, *A simplified neuron model as a principal component analyzer*, 1982), a streaming
principal component analysis of Hessians:

  V ← orth(|Λ| V + ρ (H_b V − Λ V)),

with H_b the Hessian of the current mini-batch and Λ the running Rayleigh quotients,
which make the gain ρ a pure number. Where Λ is positive this is the average
(1 − ρ) Λ V + ρ H_b V; where it is negative the vector still climbs to larger
eigenvalues. The cost does not depend on the size of the data set. The average also
smooths the swing of the Hessian from one iterate to the next, to which a basis solved
exactly one step before is exposed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.linalg import basis, branches
from bulk_sgd.solvers import oja
from bulk_sgd.solvers.solver import Solver
from bulk_sgd.solvers.subspace import Subspace


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
    Each call multiplies `columns` of the k basis vectors, in turn, by the Hessian of
    that loss, mixes each product into its vector with weight ρ, and orthonormalises
    what changed. ρ starts at 1 and falls as one over the number of sweeps to `gain`:
    the first sweeps are a power iteration, the later ones average over about 1/`gain`
    sweeps. One Jacobi rotation per call keeps the vectors in order and close to the
    eigenvectors.

    The vectors belong to the largest algebraic eigenvalues, as with `lanczos`, unless
    an eigenvalue lies below −10 λ_k (for gains from 0.1 on): its vector can return for
    ever. In the first sweeps, while ρ is near 1, negative directions can enter; they
    leave as ρ falls.

    Attributes of the result: `eigenvalues` are running Rayleigh quotients;
    `residuals` are standard errors √(ρ / (2 − ρ)) ‖H_b v − V Vᵀ H_b v‖ of the averaged
    products, which estimate ‖H v − λ v‖ as if batches were independent.

    Error and cost: `docs/solvers.md`.

    Args:
      columns: basis vectors multiplied per call, a divisor of the rank, or 0 for all.
      every: act on one call in `every`; the others cost nothing.
      gain: final weight ρ of a new product, above 0 and at most 1. A larger one follows
        faster, a smaller one averages more.

    Returns:
      A `Solver` with a `StreamingState`.

    Raises:
      ValueError: if an argument is out of its range; at `init` if `columns` does not
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
        turn, per_sweep = state.count // every, rank // width
        start, sweep = (turn % per_sweep) * width, turn // per_sweep
        weight = jnp.maximum(gain, 1 / (1 + sweep)).astype(state.noise.dtype)
        acts = every == 1 or state.count % every == 0
        rows = subspace.eigenvectors

        def move():
            own = oja.seed(basis.take_rows(rows, start, width), rows, updates, key)
            window = oja.Window(start, width, start + sweep % width, weight)
            averages = state.quotients, state.noise
            return oja.move(matvec, rows, own, window, *averages, acts)

        def rest():
            return oja.Moved(
                rows=basis.take_rows(rows, start, width),
                other=basis.row(rows, 0),
                partner=jnp.zeros((), jnp.int32),
                usable=jnp.zeros((), bool),
                quotients=state.quotients,
                noise=state.noise,
            )

        moved = branches.cond(acts, move, rest)
        rows = basis.put(rows, start, moved.rows, moved.usable)
        if width < rank:
            other = jax.tree.map(lambda x: x[None], moved.other)
            rows = basis.put(rows, moved.partner, other, moved.usable)
        found = Subspace(
            eigenvalues=jnp.diag(moved.quotients),
            eigenvectors=rows,
            residuals=jnp.sqrt(weight / (2 - weight) * moved.noise),
            converged=moved.usable | jnp.logical_not(acts),
            num_matvecs=acts * jnp.int32(width),
        )
        return found, StreamingState(state.count + 1, moved.quotients, moved.noise)

    return Solver(init, solve, guarded=True, name="streaming")
