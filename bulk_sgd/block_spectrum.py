"""Leading eigenpairs of one block of parameters while the others stand still."""

import functools

import jax
import jax.numpy as jnp

from bulk_sgd import basis, blocks, checks, curvature, masking
from bulk_sgd.solvers.lanczos import top_eigenpairs
from bulk_sgd.subspace import Subspace


def block_eigenpairs(
    matvec, params, rank: int = 1, tol: float = 1e-3, *, by: blocks.By = None, key=None
) -> dict[str, Subspace]:
    """Leading eigenpairs of the diagonal blocks of a symmetric operator.

    With the Hessian these are the sharpest directions of one layer while the others
    stand still. One compiled program per block: `top_eigenpairs` on `matvec` restricted
    to it, and on what that leaves over until nothing larger is found. A single Krylov
    sequence sees a repeated eigenvalue once, and blocks do have them: under squared
    error those of the last layer occur once per output.

    Args:
      matvec: symmetric linear callable on pytrees like `params`.
      params: pytree of floating point arrays.
      rank: number of eigenpairs of each block; a block of fewer parameters has as many
        as parameters.
      tol: as in `top_eigenpairs`, relative to the largest eigenvalue of the block.
      by: how leaves make blocks, by layer if None; see `bulk_sgd.blocks`.
      key: PRNG key of the start vectors; by default a fixed one.

    Returns:
      A `Subspace` for each block, by its name. Its vectors are like
      `masking.select(params, mask)`: the params with None outside of the block.

    Raises:
      ValueError: if an argument is out of its range, or `by` is no grouping.

    Example:
      >>> import jax.numpy as jnp, bulk_sgd
      >>> params = {"a": jnp.ones(2), "b": jnp.ones(1)}
      >>> loss = lambda p: 2 * jnp.sum(p["a"] ** 2) + 3 * p["a"][0] * p["b"][0] ** 2
      >>> found = bulk_sgd.block_eigenpairs(bulk_sgd.hessian(loss, params), params)
      >>> {name: pairs.eigenvalues.tolist() for name, pairs in found.items()}
      {'a': [4.0], 'b': [6.0]}
    """
    checks.floating("params", params)
    checks.integer("rank", rank, 1)
    key = jax.random.key(0) if key is None else key
    found = {}
    for name, mask in blocks.masks(params, by).items():
        key, start_key, solve_key = jax.random.split(key, 3)
        block = masking.select(params, mask)
        found[name] = _leading(
            blocks.diagonal_block(matvec, params, mask),
            basis.random_normal(start_key, block),
            solve_key,
            tol,
            rank=min(rank, basis.size(block)),
        )
    return found


@functools.partial(jax.jit, static_argnames="rank")
def _leading(matvec, start, key, tol, *, rank):
    """`top_eigenpairs` that sees a repeated eigenvalue as often as it occurs."""
    apply = curvature.linearize(matvec)
    key, solve_key = jax.random.split(key)
    found = top_eigenpairs(apply, start, rank, tol, key=solve_key)
    if rank == basis.size(start):
        return found
    like = basis.row(found.eigenvectors, 0)

    def left_over(found, key):
        """The largest eigenpair of what is orthogonal to those found."""
        size = jnp.max(jnp.abs(found.eigenvalues))

        def deflated(vector):
            inside = found.project(vector)
            image = found.complement(apply(basis.subtract(vector, inside)))
            # Moved down, lest they be the largest where all others are negative.
            return basis.subtract(image, basis.scale(size, inside))

        start_key, key = jax.random.split(key)
        start = found.complement(basis.random_normal(start_key, like))
        return top_eigenpairs(deflated, start, 1, tol, key=key)

    def missed(carry):
        found, other, _ = carry
        slack = tol * jnp.max(jnp.abs(found.eigenvalues))
        return other.eigenvalues[0] > found.eigenvalues[-1] + slack

    def insert(carry):
        found, other, key = carry
        order = jnp.argsort(
            found.eigenvalues.at[-1].set(other.eigenvalues[0]), descending=True
        )

        def merge(x, y):
            return x.at[-1].set(y[0])[order]

        found = Subspace(
            eigenvalues=merge(found.eigenvalues, other.eigenvalues),
            eigenvectors=jax.tree.map(merge, found.eigenvectors, other.eigenvectors),
            residuals=merge(found.residuals, other.residuals),
            converged=found.converged & other.converged,
            num_matvecs=found.num_matvecs + other.num_matvecs,
        )
        key, solve_key = jax.random.split(key)
        return found, left_over(found, solve_key), key

    key, solve_key = jax.random.split(key)
    carry = found, left_over(found, solve_key), key
    found, other, _ = jax.lax.while_loop(missed, insert, carry)
    return found._replace(
        converged=found.converged & other.converged,
        num_matvecs=found.num_matvecs + other.num_matvecs,
    )
