"""A dominant subspace of each block of parameters, as if the others were constants."""

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.curvature import blocks, masking
from bulk_sgd.linalg import basis
from bulk_sgd.solvers.subspace import Solver, Subspace, check_solver


def blockwise(solver: Solver, by: blocks.By = None) -> Solver:
    """Solver that treats every block of parameters by itself.

    The rank k is split evenly, the first blocks getting one more where it does not
    divide: each of the B blocks keeps the leading eigenvectors of its diagonal block of
    the curvature, which are zero elsewhere. They come one block after the other, so
    that `eigenvalues` descend within a block alone. P is then
    the projector of a block-diagonal approximation of H, as Zhou et al. use it (*BSFA*,
    arXiv 2510.25244), where layers are to be scaled apart.

    That can differ much from the dominant subspace of all parameters, whose
    eigenvectors couple the layers (arXiv 2602.00816): `Subspace.overlap` with it tells,
    and the training binary reports it with its measures.

    Under squared error the eigenvalues of a linear last layer occur once per output, of
    which `lanczos()` finds one; `lanczos(repeated=True)` and `power()` find them all.

    Error: that of `solver` for the blocks; the overlap with the subspace of H along
    training is in `docs/solvers.md`. Cost: the matvecs of B solves, at about k / B
    vectors each; memory for the k rows, of which each is zero outside of its block.

    Args:
      solver: what is called for each block, such as `bulk_sgd.power()`.
      by: how parameters are grouped: None or "layer" by layer, a regular
        expression searched in the paths of the leaves, such as `"^[^/]*"`, or a
        function from a path to a name or None. Parameters in no block are in the bulk.

    Returns:
      A `Solver` whose state is the tuple of the states of the blocks.

    Raises:
      ValueError: if an argument is out of its range, at `init` if there are more
        blocks than the rank, or a block has fewer parameters than its share of it.

    Example:
      >>> import bulk_sgd
      >>> solver = bulk_sgd.blockwise(bulk_sgd.power(), by="^[^/]*")
      >>> tx = bulk_sgd.project_bulk(rank=12, solver=solver)
    """
    check_solver(solver)

    def init(params, rank):
        if not jax.tree.leaves(params):  # what optax.tree_map_params passes
            return jnp.zeros(())  # one leaf for all that the blocks keep
        masks = blocks.masks(params, by)
        states = []
        for (name, mask), share in zip(masks.items(), _shares(rank, masks)):
            part = masking.select(params, mask)
            size = basis.size(part)
            checks.integer(
                f"the share of block {name!r} in the rank",
                share,
                1,
                size,
                "its number of parameters",
            )
            try:
                states.append(solver.init(part, share))
            except checks.ArgumentError as error:
                where = f"The rank of block {name!r} is {share}, of {rank} in all."
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
                eigenvectors=basis.block(rows, start, share),
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

    return Solver(init, solve, eigenpairs=solver.eigenpairs)


def _shares(rank: int, masks) -> list[int]:
    """How many of the vectors each block gets."""
    count = len(masks)
    names = ", ".join(map(repr, masks))
    checks.integer("rank", rank, count, why=f"one for each of the blocks {names}")
    return [rank // count + (index < rank % count) for index in range(count)]


def _join(parts: list[Subspace], masks, like: Subspace) -> Subspace:
    """The rows of all blocks, one block after the other, zero outside of their own."""
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
