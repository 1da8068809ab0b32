"""A check that a loss is a mean over examples, as microbatches take it to be.

A sum over examples, a mean over unmasked tokens, or outputs `(n, 1)` that broadcast
against targets `(n,)` give another number in every microbatch size. Such a loss shows
on two halves of a few examples: the average of their losses is not the loss of all.
The examples are made up, so that the check needs shapes and dtypes alone: no data and
no network, in a program of a few kilobytes.
"""

import functools
import math
from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np

from bulk_sgd import checks
from bulk_sgd.curvature.captured import Reading

_EXAMPLES = 4  # two halves of two, so that a mask can hide a part of a half
_CUT, _LARGE = 8, 2**20  # an axis, and the entries above which axes are cut
# Of the loss: above the rounding of bfloat16, below what any of the faults does.
_TOL = 1e-2
_ADVICE = (
    " Masks are the weights= of an Objective; a loss that compares examples is a plain "
    "function of the params, to be used without an Objective."
)
_RULE = "It must return one loss per example, or per example and token, or their mean."


def check(loss_fn, outputs, targets, num_examples: int, advice: str = _ADVICE):
    """Raises ArgumentError if `loss_fn` is not a mean over examples.

    A loss that fails on made-up examples, or is not finite there, passes.

    Example:
      >>> import jax.numpy as jnp
      >>> from bulk_sgd.curvature import separable
      >>> total = lambda outputs, targets: jnp.sum((outputs - targets) ** 2)
      >>> separable.check(total, jnp.ones(3), jnp.ones(3), 3)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      bulk_sgd.checks.ArgumentError: loss_fn is no mean over examples: ...
    """
    leaves, structure = jax.tree.flatten((outputs, targets))
    forms = tuple((jnp.shape(x), jnp.result_type(x).name) for x in leaves)
    split = tuple(shape[:1] == (num_examples,) for shape, _ in forms)
    forms = tuple((s[1:] if cut else s, d) for (s, d), cut in zip(forms, split))
    num_outputs = len(jax.tree.leaves(outputs))
    if not isinstance(loss_fn, Hashable):  # nor can it pass through jit
        return
    reading = Reading.of(loss_fn)
    problem = _problem(reading, structure, forms, split, num_outputs)
    if problem:
        raise checks.ArgumentError("loss_fn", f"{problem}{advice}")


@functools.lru_cache(maxsize=64)
def _problem(reading, structure, forms, split, num_outputs):
    """What is wrong with a loss on leaves of these forms, or None."""
    forms = _cut(forms, num_outputs)
    if _EXAMPLES * sum(math.prod(shape) for shape, _ in forms) > 16 * _LARGE:
        return None
    shapes = []

    def losses(*leaves):
        found = reading.fn(*structure.unflatten(leaves))
        shapes.append(found.shape)
        return jnp.mean(found)

    @jax.jit
    def values(leaves):
        half = lambda cut: [x[cut] if own else x for x, own in zip(leaves, split)]
        return jnp.stack([losses(*half(slice(*ends))) for ends in ((4,), (2,), (2, 4))])

    for trial in range(4):
        made = (_made(*form, i, trial, num_outputs) for i, form in enumerate(forms))
        try:
            leaves = [x if own else x[0] for x, own in zip(made, split)]
            with jax.ensure_compile_time_eval():
                found = np.asarray(values(leaves), np.float64)
        except Exception:  # a loss may want other data than made-up ones
            continue
        if sum(a != b for a, b in zip(*shapes[:2])) > 1:
            given = [(_EXAMPLES, *f[0]) for f, own in zip(forms, split) if own]
            return (
                f"returns losses {shapes[0]} on {_EXAMPLES} examples: its arguments "
                f"{', '.join(map(str, given))} broadcast against each other. {_RULE}"
            )
        whole, halves = found[0], found[1:].mean()
        if abs(whole - halves) > _TOL * abs(found).max():  # False where NaN
            return (
                f"is no mean over examples: made-up ones give {whole:.4g}, their "
                f"halves {halves:.4g} on average. {_RULE}"
            )
    return None


def _cut(forms, num_outputs):
    """The forms; if large, with each axis cut that targets share, such as tokens."""
    shared = {size for shape, _ in forms[num_outputs:] for size in shape}
    if _EXAMPLES * sum(math.prod(shape) for shape, _ in forms) <= _LARGE:
        return forms
    size = lambda n: min(n, _CUT) if n in shared else n
    return tuple((tuple(map(size, shape)), dtype) for shape, dtype in forms)


def _made(shape, dtype, index, trial, num_outputs):
    """Entries of `_EXAMPLES` examples, such that the two halves have unlike losses.

    In the first half of the targets every second entry is one that masks use: −100, −1
    or 0, of floats 0 or NaN. The last trial, for logarithms and quotients, has positive
    numbers alone.
    """
    rng = np.random.default_rng((index, trial))
    shape, dtype = (_EXAMPLES, *shape), jnp.dtype(dtype)
    second = np.arange(_EXAMPLES).reshape(-1, *[1] * (len(shape) - 1)) >= 2
    if index < num_outputs and jnp.issubdtype(dtype, jnp.inexact):
        made = rng.standard_normal(shape)
        if trial < 3:
            return (made * np.where(second, 10, 1)).astype(dtype)
        return (1 / (1 + np.exp(-made * np.where(second, 3, 1)))).astype(dtype)
    masked = ~second & (np.arange(math.prod(shape)).reshape(shape) % 2 == 0)
    if not jnp.issubdtype(dtype, jnp.inexact):
        return np.where(masked, (-100, -1, 0, 0)[trial], 1).astype(dtype)
    made = rng.uniform(0.5, 1, shape)
    if trial == 3:
        return (made / np.where(second, 3, 1)).astype(dtype)
    return np.where(masked, (0, np.nan, 0)[trial], made).astype(dtype)
