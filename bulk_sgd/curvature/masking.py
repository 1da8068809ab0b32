"""A subset of the parameters as a pytree of its own.

Leaves outside the mask become None, an empty subtree to JAX, so that bases and products
only ever see the selected leaves.
"""

import functools

import jax
import numpy as np
import optax

from bulk_sgd import functions
from bulk_sgd.curvature.objective import Objective


def select(tree, mask, is_leaf=None):
    """`tree` with None in place of the leaves outside the mask.

    The mask is None (all), a pytree of bools with the structure of `tree` or a prefix
    of it, or a function from `tree` to one. It must select a leaf. A node for which
    `is_leaf` is true counts as one leaf.
    """
    refuse_hidden(tree)
    if mask is None:
        return tree
    flags = resolve(mask, tree, "mask")
    try:
        choose = functools.partial(_select_branch, is_leaf=is_leaf)
        selected = jax.tree.map(choose, flags, tree)
    except (TypeError, ValueError):  # a leaf that is no bool, or another structure
        raise ValueError(
            f"mask is {flags!r}; it must be a pytree of bools with the structure of "
            "the params or a prefix of it, or a function that returns one."
        ) from None
    if not jax.tree.leaves(selected):
        raise ValueError("mask selects no parameter; it must select at least one.")
    return selected


def refuse_hidden(tree):
    """Raises ValueError if a leaf is an `optax.MaskedNode`."""
    leaves = jax.tree.leaves(tree, is_leaf=_is_masked_node)
    if any(map(_is_masked_node, leaves)):
        raise ValueError(
            "params are hidden behind optax.MaskedNode, so that value_fn cannot be "
            "evaluated: instead of wrapping a bulk_sgd transform in optax.masked or "
            "optax.partition, pass it mask=... and chain it outside the wrapper."
        )


def resolve(option, tree, name: str):
    """The argument `option` itself, or `option(tree)` if it is a function.

    As in optax, a function is a pytree with callable leaves. To be callable is not
    enough: a mask or layout of an equinox network is itself a callable pytree.
    """
    leaves = jax.tree.leaves(option)
    if not leaves or not all(map(callable, leaves)):
        return option
    functions.check(name, option, "params")
    return option(tree)


def merge(selected, tree):
    """`selected` with the leaves of `tree` where it has None."""
    return jax.tree.map(
        lambda x, full: full if x is None else x,
        selected,
        tree,
        is_leaf=lambda x: x is None,
    )


def restrict(value_fn, params, mask):
    """`value_fn` as a function of the selected params, and the selected params.

    The other params are fixed. An `Objective` stays one.
    """
    if mask is None:
        return value_fn, params
    block = select(params, mask)
    if isinstance(value_fn, Objective):
        return value_fn.reparametrize(lambda block: merge(block, params)), block
    return lambda block: value_fn(merge(block, params)), block


def _select_branch(flag, branch, is_leaf):
    if not isinstance(flag, bool | np.bool_):
        raise TypeError
    return branch if flag else jax.tree.map(lambda _: None, branch, is_leaf=is_leaf)


def _is_masked_node(leaf):
    return isinstance(leaf, optax.MaskedNode)
