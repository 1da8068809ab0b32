"""Keyword arguments of an update, passed on to the loss that names them."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from bulk_sgd import functions


def bind(value_fn, extra_args):
    """Returns `value_fn` with the extra arguments that it names."""
    if value_fn is None:
        raise TypeError(
            "update of a bulk_sgd transform needs the keyword argument value_fn, a "
            "scalar function of the params: tx.update(grads, state, params, "
            "value_fn=loss), or matvec, which multiplies by its Hessian. Wrappers that "
            "drop keyword arguments, such as flax's TrainState.apply_gradients, cannot "
            "be used; call tx.update yourself."
        )
    functions.check("value_fn", value_fn)
    known = functions.signature(value_fn)
    names = list(known.parameters)[1:] if known else ()
    bound = {name: extra_args[name] for name in names if name in extra_args}
    options = {name: x for name, x in bound.items() if _is_option(x)}
    data = {name: x for name, x in bound.items() if name not in options}
    if options:
        value_fn = _WithOptions(value_fn, tuple(options.items()))
    bound = jax.tree_util.Partial(value_fn, **data) if bound else value_fn
    functions.check("value_fn", bound, "params")
    return bound


class _WithOptions(NamedTuple):
    """A function with arguments that are no data: equal where these are."""

    fn: Callable
    options: tuple

    def __call__(self, params, **data):
        return self.fn(params, **dict(self.options), **data)


def _is_option(x):
    """Whether `x` is what a program is compiled for, rather than compiled to take."""
    return isinstance(x, bool | str) or (callable(x) and jax.tree.leaves(x) == [x])
