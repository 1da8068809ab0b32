r"""Blocks of parameters: which leaves belong together, and the curvature within one.

The *path* of a leaf is what leads to it, joined by slashes: `dense_0/kernel`. A
*grouping* `by` names the block of each leaf from its path:

- None or "layer": its layer, the path without its last part, so that a kernel and its
  bias are one block; a leaf at the top is a block of its own;
- a regular expression: what it finds in the path, or its first group if it has one;
  `"block_\d+"`, or `".*"` for each leaf by itself;
- a function from the path to a name.

A leaf for which the expression finds nothing, or the function gives None, is in no
block. The diagonal block of a symmetric matrix A for the parameters S of a block is
A_SS, of vectors like `masking.select(params, mask)`.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bulk_sgd import checks
from bulk_sgd.curvature import masking, operators
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
    """The name of the block of each leaf, in the order of `jax.tree.leaves`.

    Args:
      params: pytree of the parameters.
      by: the grouping, see above.

    Returns:
      A list of names, None for a leaf in no block.

    Raises:
      ValueError: if `by` is no grouping, or puts no leaf in a block.

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
    """The blocks as masks, as `masking` and the transforms take them.

    Args:
      params: pytree of the parameters.
      by: the grouping, see above.

    Returns:
      A pytree of bools like `params` for each block, by its name, in the order in
      which the names first occur.

    Raises:
      ValueError: as `names` does.

    Example:
      >>> from bulk_sgd.curvature import blocks
      >>> blocks.masks({"head": {"kernel": 1.0, "bias": 2.0}, "scale": 3.0})["scale"]
      {'head': {'bias': False, 'kernel': False}, 'scale': True}
    """
    found = names(params, by)
    treedef = jax.tree.structure(params)
    return {
        block: treedef.unflatten([name == block for name in found])
        for block in dict.fromkeys(found)
        if block is not None
    }


def diagonal_block(matvec, params, mask):
    """Matvec with a diagonal block: embeds, multiplies, and keeps the block.

    A product costs as much as one with the whole matrix. Where the loss is at hand,
    the curvature of `masking.restrict(value_fn, params, mask)` is the same block and
    costs less, as the gradient stops at the block; but that is a new function, and so
    another program, at every call.

    Args:
      matvec: symmetric linear callable on pytrees like `params`.
      params: pytree like the vectors of `matvec`, for the shapes of what is left out.
      mask: pytree of bools or a prefix of one, see `masks`.

    Returns:
      A callable pytree on vectors like `masking.select(params, mask)`.

    Raises:
      ValueError: as `masking.select` does.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> from bulk_sgd.curvature import blocks
      >>> from bulk_sgd.curvature import masking
      >>> params = {"a": jnp.ones(2), "b": jnp.ones(1)}
      >>> matvec = bulk_sgd.hessian(lambda p: jnp.sum(p["a"] ** 2) * p["b"][0], params)
      >>> mask = blocks.masks(params)["a"]
      >>> block = blocks.diagonal_block(matvec, params, mask)
      >>> block(masking.select(params, mask))["a"].tolist()
      [2.0, 2.0]
    """
    selected = masking.select(params, mask)
    # Of `params`, in which a mask of the transform may have left None already.
    flags = jax.tree.map(lambda _, x: x is not None, params, selected)
    leaves, structure = jax.tree.flatten(params)
    static = tuple(jax.tree.leaves(flags)), structure, tuple(map(jnp.shape, leaves))
    return _Block(operators.as_pytree(matvec), static)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Block:
    """`matvec` between vectors that are zero outside of a block."""

    matvec: Any
    block: tuple = dataclasses.field(metadata={"static": True})

    def __call__(self, vector):
        return self._within(self.matvec)(vector)

    def linearize(self) -> Callable:
        """As that of the products inside, restricted."""
        return self._within(operators.linearize(self.matvec))

    def _within(self, matvec):
        flags, structure, shapes = self.block
        mask = structure.unflatten(flags)

        def product(vector):
            dtype = basis.working_dtype(vector)
            zeros = structure.unflatten([jnp.zeros(shape, dtype) for shape in shapes])
            return masking.select(matvec(masking.merge(vector, zeros)), mask)

        return product


def _namer(by: By) -> Callable[[str], Any]:
    if by is None or by == "layer":
        return lambda path: path.rpartition("/")[0] or path
    if callable(by):
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
    # flax keeps an array in the attribute `value` of a variable, which is no name.
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/") or "params"
