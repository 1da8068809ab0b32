"""A dominant subspace of each block of parameters, with the other blocks held fixed."""

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.curvature import blocks, masking
from bulk_sgd.linalg import basis
from bulk_sgd.solvers.solver import Solver, check_solver
from bulk_sgd.solvers.subspace import Subspace


def blockwise(solver: Solver, by: blocks.By = None) -> Solver:
    """Returns a solver that treats each block of parameters by itself.

    Each of the B blocks has the leading eigenvectors of its diagonal block of the
    curvature; they are zero outside of the block. The blocks share the rank k evenly,
    and if B does not divide k, the first blocks get one vector more. Rows come block by
    block, so `eigenvalues` descend only within a block. P is then block-diagonal. Zhou
    et al. scale layers independently by such a projector (*BSFA*, arXiv 2510.25244).

    P can differ much from the projector for all parameters, because eigenvectors of H
    couple the layers (arXiv 2602.00816). `Subspace.overlap` compares the two subspaces.
    Experiments of `bulk_sgd.lab` log this overlap as `exact_overlap` if
    `config.measures.every` is above 0.

    Under squared error each eigenvalue of a linear last layer occurs once per output.
    `lanczos()` finds one copy; `lanczos(repeated=True)` and `power()` find all of them.

    Error: as for `solver`, in each block; `docs/solvers.md` has the overlap with the
    subspace of H along training. Cost: B solves for about k / B vectors each, and
    memory for k full rows, zeros included.

    Args:
      solver: the solver to call for each block, such as `bulk_sgd.power()`.
      by: how to group the parameters. None and "layer" group by layer. A regular
        expression, such as `"^[^/]*"`, groups leaves by what it matches in their paths.
        A function takes the path of a leaf and returns the name of its block, or None
        for no block. Parameters in no block belong to the bulk.

    Returns:
      A `Solver`; its state is a tuple with one state per block.

    Raises:
      ValueError: if an argument is out of its range. At `init`, if the rank is less
        than the number of blocks, or if a block has fewer parameters than its share of
        the rank.

    Example:
      >>> import bulk_sgd
      >>> solver = bulk_sgd.blockwise(bulk_sgd.power(), by="^[^/]*")
      >>> tx = bulk_sgd.project_bulk(rank=12, solver=solver)
    """
    check_solver(solver)
    if solver.zeros is not basis.zeros:
        problem = f"is {solver.name} with factors; it must be one with a dense basis."
        raise checks.ArgumentError("solver", problem)

    def init(params, rank):
        if not jax.tree.leaves(params):  # what optax.tree_map_params passes
            return jnp.zeros(())  # one leaf stands for all that the blocks keep
        masks = blocks.masks(params, by)
        states = []
        for (name, mask), share in zip(masks.items(), _shares(rank, masks)):
            part = masking.select(params, mask)
            what = f"the share of block {name!r} in the rank"
            why = "its number of parameters"
            checks.integer(what, share, 1, basis.size(part), why)
            try:
                states.append(solver.init(part, share))
            except ValueError as error:
                where = f"The rank of block {name!r} is {share}, of {rank} in all."
                if not isinstance(error, checks.ArgumentError):
                    raise ValueError(f"{error} {where}") from error
                problem = f"{error.problem} {where}"
                raise checks.ArgumentError(error.name, problem) from None
        return tuple(states)

    def solve(matvec, subspace, state, updates, key):
        masks = blocks.masks(updates, by)
        shares = _shares(subspace.rank, masks)
        found, states, start = [], [], 0
        for mask, share, known in zip(masks.values(), shares, state):
            own = slice(start, start + share)
            rows = masking.select(subspace.eigenvectors, mask)
            part = subspace._replace(
                eigenvalues=subspace.eigenvalues[own],
                eigenvectors=basis.take_rows(rows, start, share),
                residuals=subspace.residuals[own],
            )
            returned, after = solver.solve(
                blocks.diagonal_block(matvec, updates, mask),
                part,
                known,
                masking.select(updates, mask),
                jax.random.fold_in(key, start),
            )
            found.append(returned)
            states.append(after)
            start += share
        return _join(found, masks.values(), subspace), tuple(states)

    return solver._replace(
        init=init, solve=solve, guarded=False, name="blockwise", whole=False
    )


def _shares(rank: int, masks) -> list[int]:
    """How many vectors each block gets."""
    count = len(masks)
    names = ", ".join(map(repr, masks))
    checks.integer("rank", rank, count, why=f"one for each of the blocks {names}")
    return [rank // count + (index < rank % count) for index in range(count)]


def _join(parts: list[Subspace], masks, like: Subspace) -> Subspace:
    """The pairs of all blocks in one `Subspace`, block by block."""
    vectors = jax.tree.map(jnp.zeros_like, like.eigenvectors)
    start = 0
    for part, mask in zip(parts, masks):
        own = masking.select(vectors, mask)
        rows = basis.cast_like(part.eigenvectors, own)
        own = basis.put(own, start, rows, jnp.ones((), bool))
        vectors = masking.merge(own, vectors)
        start += part.rank
    return like._replace(
        eigenvalues=jnp.concatenate([part.eigenvalues for part in parts]),
        eigenvectors=vectors,
        residuals=jnp.concatenate([part.residuals for part in parts]),
        converged=jnp.all(jnp.stack([part.converged for part in parts])),
        num_matvecs=sum(part.num_matvecs for part in parts),
    )
