r"""Blocks of parameters: which leaves belong together, and the curvature within one.

The *path* of a leaf joins the keys that lead to it with slashes: `dense_0/kernel`. A
*grouping* `by` names the block of each leaf from its path:

- None or "layer": the path without its last part, so that the kernel and the bias of a
  layer are one block; a leaf at the top is a block of its own;
- a regular expression: the text it matches in the path, or its first group if it has
  one, such as `"block_\d+"`; `".*"` makes each leaf a block;
- a function from the path to a name.

A leaf that the expression does not match, or that the function maps to None, is in no
block. The diagonal block of a symmetric matrix A for a block S of parameters is A_SS;
it acts on vectors like `masking.select(params, mask)`.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bulk_sgd import checks, functions
from bulk_sgd.curvature import masking
from bulk_sgd.curvature.operators import Wrapped, as_pytree
from bulk_sgd.linalg import basis

By = str | Callable[[str], str | None] | None


def paths(params) -> list[str]:
    """The path of each leaf, in the order of `jax.tree.leaves`.

    Example:
      >>> from bulk_sgd.curvature import blocks
      >>> blocks.paths({"head": {"kernel": 1.0, "bias": 2.0}, "scale": 3.0})
      ['head/bias', 'head/kernel', 'scale']
    """
    return [_text(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def names(params, by: By = None) -> list[str | None]:
    """The name of the block of each leaf, or None, in the order of `jax.tree.leaves`.

    Raises ValueError if `by` is no grouping, or puts no leaf in a block.

    Example:
      >>> from bulk_sgd.curvature import blocks
      >>> blocks.names({"head": {"kernel": 1.0, "bias": 2.0}, "scale": 3.0})
      ['head', 'head', 'scale']
      >>> blocks.names({"head": {"kernel": 1.0, "bias": 2.0}}, "kernel")
      [None, 'kernel']
    """
    found = [_namer(by)(path) for path in paths(params)]
    if any(not isinstance(name, str | None) for name in found):
        wrong = next(name for name in found if not isinstance(name, str | None))
        problem = f"gave {wrong!r}; it must give a name or None."
        raise checks.ArgumentError("by", problem)
    if not any(name is not None for name in found):
        raise checks.ArgumentError(
            "by",
            f"is {by!r}, which puts no parameter in a block; it must fit one of the "
            f"paths {', '.join(paths(params))}.",
        )
    return found


def masks(params, by: By = None) -> dict[str, Any]:
    """A mask for each block: a pytree of bools like `params`, as transforms take it.

    The dict has the names of the blocks in the order in which they first occur, without
    blocks that have no entries.

    Example:
      >>> from bulk_sgd.curvature import blocks
      >>> blocks.masks({"head": {"kernel": 1.0, "bias": 2.0}, "scale": 3.0})["scale"]
      {'head': {'bias': False, 'kernel': False}, 'scale': True}
    """
    found = names(params, by)
    leaves, treedef = jax.tree.flatten(params)
    full = [name for name, x in zip(found, leaves) if math.prod(jnp.shape(x))]
    return {
        block: treedef.unflatten([name == block for name in found])
        for block in dict.fromkeys(full)
        if block is not None
    }


def diagonal_block(matvec, params, mask):
    """Returns a function that multiplies vectors by a diagonal block of a matrix.

    A product costs as much as one with the whole matrix. The curvature of
    `masking.restrict(value_fn, params, mask)` is the same block, and its products cost
    less, since the gradient stops at the block. But `restrict` returns a new function
    at every call, and each new function needs a new program.

    Args:
      matvec: symmetric linear callable on pytrees like `params`.
      params: pytree like the vectors of `matvec`, for the shapes outside the block.
      mask: pytree of bools or a prefix of one, see `masks`.

    Returns:
      A callable pytree on vectors like `masking.select(params, mask)`.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> from bulk_sgd.curvature import blocks, masking
      >>> params = {"a": jnp.ones(2), "b": jnp.ones(1)}
      >>> matvec = bulk_sgd.hessian(lambda p: jnp.sum(p["a"] ** 2) * p["b"][0], params)
      >>> mask = blocks.masks(params)["a"]
      >>> block = blocks.diagonal_block(matvec, params, mask)
      >>> block(masking.select(params, mask))["a"].tolist()
      [2.0, 2.0]
    """
    selected = masking.select(params, mask)
    # Mapped over `params`, where the mask of a transform may already have left None.
    flags = jax.tree.map(lambda _, x: x is not None, params, selected)
    leaves, structure = jax.tree.flatten(params)
    static = tuple(jax.tree.leaves(flags)), structure, tuple(map(jnp.shape, leaves))
    return Wrapped(_within, as_pytree(matvec), static=static)


def _within(matvec, vector, flags, structure, shapes):
    dtype = basis.working_dtype(vector)
    zeros = structure.unflatten([jnp.zeros(shape, dtype) for shape in shapes])
    image = matvec(masking.merge(vector, zeros))
    return masking.select(image, structure.unflatten(flags))


def _namer(by: By) -> Callable[[str], Any]:
    if by is None or by == "layer":
        return lambda path: path.rpartition("/")[0] or path
    if callable(by):
        functions.check("by", by, "path")
        return by
    try:
        pattern = re.compile(by)
    except (re.error, TypeError):
        raise checks.ArgumentError(
            "by",
            f"is {by!r}; it must be None, 'layer', a regular expression or a function "
            "from a path to a name.",
        ) from None

    def find(path):
        match = pattern.search(path)
        return match and match[min(pattern.groups, 1)]

    return find


def _text(path) -> str:
    # flax keeps the array of a variable in its attribute `value`, which names nothing.
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/") or "params"
