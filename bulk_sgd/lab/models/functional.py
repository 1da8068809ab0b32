"""Networks of any kind as a pure function of parameters, nested dicts by name."""

import functools
import operator
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen, nnx

_KINDS = (
    "a flax NNX, flax linen or Equinox module, or a pair of functions, init(key) and "
    "apply(params, inputs)"
)


def functional(network, seed: int, example) -> tuple[Callable, dict]:
    """A function of params and inputs (n, …), and the initial params.

    Args:
      network: a flax NNX or linen module of (n, …), an Equinox module of one example,
        or a pair (init, apply).
      seed: of the initial parameters of linen and of a pair.
      example: `ShapeDtypeStruct` of inputs (1, …), for linen.

    Raises:
      TypeError: the network is of no such kind.
      ValueError: the network has arrays that are not parameters, such as averages over
        batches, or it has no parameters.
    """
    equinox = sys.modules.get("equinox")
    others = {}
    if isinstance(network, nnx.Module):
        graph, state, rest = nnx.split(network, nnx.Param, ...)
        params = nnx.to_pure_dict(state)
        apply = lambda params, inputs: nnx.merge(graph, params, rest)(inputs)
        others = {type(x).__name__ for _, x in nnx.to_flat_state(rest)} - {"ndarray"}
    elif isinstance(network, linen.Module):
        inputs = jnp.zeros(example.shape, example.dtype)
        others = dict(network.init(jax.random.key(seed), inputs))
        params = others.pop("params", {})
        apply = lambda params, inputs: network.apply({"params": params}, inputs)
    elif equinox is not None and isinstance(network, equinox.Module):
        params, static = equinox.partition(network, equinox.is_inexact_array)
        others = {
            x.dtype.name for x in filter(equinox.is_array, jax.tree.leaves(static))
        }
        apply = lambda params, x: jax.vmap(equinox.combine(params, static))(x)
    elif isinstance(network, tuple) and list(map(callable, network)) == [True] * 2:
        params, apply = network[0](jax.random.key(seed)), network[1]
    else:
        kind = type(network).__name__
        raise TypeError(f"the network is of type {kind}; it must be {_KINDS}.")
    if others:
        raise ValueError(
            f"the network holds {', '.join(sorted(others))} beside its parameters; it "
            "must do without dropout and averages over batches, with which its loss is "
            "no mean over examples, and constants must be NumPy's."
        )
    named, back = _by_name(params)
    return lambda params, inputs: apply(back(params), inputs), named


def _by_name(params) -> tuple[dict, Callable]:
    """Params as nested dicts with strings as keys, and the way back.

    Checkpoints keep no other trees: they turn the numbers of a list into strings.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    if not leaves:
        raise ValueError("the network has no parameters.")
    named, places = {}, []
    for path, leaf in leaves:
        parts = [jax.tree_util.keystr((part,), simple=True) for part in path]
        places.append(parts or ["params"])
        *groups, name = places[-1]
        group = functools.reduce(
            lambda tree, key: tree.setdefault(key, {}), groups, named
        )
        group[name] = jnp.asarray(leaf)
    get = lambda tree, place: functools.reduce(operator.getitem, place, tree)
    return named, lambda tree: treedef.unflatten([get(tree, p) for p in places])
