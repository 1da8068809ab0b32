"""A dominant subspace of each block of parameters, as if the others were constants."""

import jax
import jax.numpy as jnp

from bulk_sgd import basis, blocks, checks, masking
from bulk_sgd.subspace import Solver, Subspace


def blockwise(solver: Solver, by: blocks.By = None) -> Solver:
    """Solver that treats every block of parameters by itself.

    The rank k is split evenly: each of the B blocks keeps the k / B leading
    eigenvectors of its diagonal block of the curvature, which are zero elsewhere, one
    block after the other, so that `eigenvalues` descend within a block alone. P is then
    the projector of a block-diagonal approximation of H, as Zhou et al. use it (*BSFA*,
    arXiv 2510.25244), where layers are to be scaled apart.

    That can differ much from the dominant subspace of all parameters, whose
    eigenvectors couple the layers (arXiv 2602.00816): `Subspace.overlap` with it tells,
    and the training binary reports it with its measures.

    Error: that of `solver` for the blocks; the overlap with the subspace of H along
    training is in `docs/solvers.md`. Cost: B times the matvecs of `solver`, at k / B
    vectors each; memory for the k rows, of which each is zero outside of its block.

    Args:
      solver: what is called for each block, such as `bulk_sgd.lanczos()`.
      by: how parameters are grouped: None by layer, a regular expression searched in
        the paths of the leaves, such as `"^[^/]*"`, or a function from a path to a name
        or None. Parameters in no block are in the bulk.

    Returns:
      A `Solver` whose state is the tuple of the states of the blocks.

    Raises:
      ValueError: if an argument is out of its range, at `init` if the number of blocks
        does not divide the rank or a block has fewer parameters than its share.

    Example:
      >>> import bulk_sgd
      >>> solver = bulk_sgd.blockwise(bulk_sgd.lanczos(), by="^[^/]*")
      >>> tx = bulk_sgd.project_bulk(rank=12, solver=solver)
    """
    if not isinstance(solver, Solver):
        raise ValueError(
            f"solver is {solver!r}; it must be a bulk_sgd.Solver such as "
            "bulk_sgd.lanczos()."
        )

    def init(params, rank):
        if not jax.tree.leaves(params):  # what optax.tree_map_params passes
            return jnp.zeros(())  # one leaf for all that the blocks keep
        masks = blocks.masks(params, by)
        share = _share(rank, masks)
        states = []
        for name, mask in masks.items():
            part = masking.select(params, mask)
            size = basis.size(part)
            checks.integer(
                f"the share of block {name!r} in the rank",
                share,
                1,
                size,
                "its number of parameters",
            )
            states.append(solver.init(part, share))
        return tuple(states)

    def solve(matvec, subspace, state, updates, key):
        masks = blocks.masks(updates, by)
        share = _share(subspace.rank, masks)
        found, states = [], []
        for index, (mask, known) in enumerate(zip(masks.values(), state)):
            own = slice(index * share, (index + 1) * share)
            rows = masking.select(subspace.eigenvectors, mask)
            part = subspace._replace(
                eigenvalues=subspace.eigenvalues[own],
                eigenvectors=basis.block(rows, index * share, share),
                residuals=subspace.residuals[own],
            )
            returned, after = solver.solve(
                blocks.restrict(matvec, updates, mask),
                part,
                known,
                masking.select(updates, mask),
                jax.random.fold_in(key, index),
            )
            found.append(returned)
            states.append(after)
        return _join(found, masks.values(), subspace), tuple(states)

    return Solver(init, solve)


def _share(rank: int, masks) -> int:
    if rank % len(masks):
        names = ", ".join(map(repr, masks))
        raise ValueError(
            f"rank is {rank}; it must be a multiple of the number of blocks, "
            f"{len(masks)} ({names})."
        )
    return rank // len(masks)


def _join(parts: list[Subspace], masks, like: Subspace) -> Subspace:
    """The rows of all blocks, one block after the other, zero outside of their own."""
    vectors = jax.tree.map(jnp.zeros_like, like.eigenvectors)
    for index, (part, mask) in enumerate(zip(parts, masks)):
        own = masking.select(vectors, mask)
        start, write = index * part.rank, jnp.ones((), bool)
        own = basis.put(own, start, part.eigenvectors, write)
        vectors = masking.merge(own, vectors)
    return like._replace(
        eigenvalues=jnp.concatenate([part.eigenvalues for part in parts]),
        eigenvectors=vectors,
        residuals=jnp.concatenate([part.residuals for part in parts]),
        converged=jnp.all(jnp.stack([part.converged for part in parts])),
        num_matvecs=sum(part.num_matvecs for part in parts),
    )
