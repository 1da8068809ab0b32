"""Leading eigenpairs of each block of parameters."""

import jax

from bulk_sgd import checks, functions
from bulk_sgd.curvature import blocks, masking
from bulk_sgd.linalg import basis
from bulk_sgd.solvers.lanczos import top_eigenpairs
from bulk_sgd.solvers.subspace import Subspace


def block_eigenpairs(
    matvec, params, rank: int = 1, tol: float = 1e-3, *, by: blocks.By = None, key=None
) -> dict[str, Subspace]:
    """Returns the leading eigenpairs of each diagonal block of a symmetric operator.

    For the Hessian these are the sharpest directions of one layer with the other layers
    held fixed. Each block takes one compiled program: `top_eigenpairs` with `repeated`,
    on `matvec` restricted to the block. Blocks have repeated eigenvalues: under squared
    error each eigenvalue of a linear last layer occurs once per output.

    Args:
      matvec: symmetric linear callable on pytrees like `params`.
      params: pytree of floating point arrays.
      rank: number of eigenpairs per block. A block with fewer parameters gives one pair
        per parameter.
      tol: as in `top_eigenpairs`, relative to the largest |λ| of the block.
      by: how leaves are grouped, by layer if None; see `bulk_sgd.curvature.blocks`.
      key: PRNG key of the start vectors; by default a fixed one.

    Returns:
      A dict from the name of each block to its `Subspace`. Vectors are like the params,
      with None outside the block.

    Raises:
      ValueError: if an argument is out of its range, or if `by` is not a grouping.

    Example:
      >>> import jax.numpy as jnp, bulk_sgd
      >>> params = {"a": jnp.ones(2), "b": jnp.ones(1)}
      >>> loss = lambda p: 2 * jnp.sum(p["a"] ** 2) + 3 * p["a"][0] * p["b"][0] ** 2
      >>> found = bulk_sgd.block_eigenpairs(bulk_sgd.hessian(loss, params), params)
      >>> {name: pairs.eigenvalues.tolist() for name, pairs in found.items()}
      {'a': [4.0], 'b': [6.0]}
    """
    functions.check("matvec", matvec, "vector")
    checks.floating("params", params)
    checks.integer("rank", rank, 1)
    key = checks.key(key)
    found = {}
    for name, mask in blocks.masks(params, by).items():
        key, start_key, solve_key = jax.random.split(key, 3)
        block = masking.select(params, mask)
        found[name] = top_eigenpairs(
            blocks.diagonal_block(matvec, params, mask),
            basis.random_normal(start_key, block),
            min(rank, basis.size(block)),
            tol,
            repeated=True,
            key=solve_key,
        )
    return found
