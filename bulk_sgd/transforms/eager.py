"""What a training loop outside of `jit` is warned of, once for each transform."""

import functools
import types
import warnings
from collections import Counter
from typing import Any

import jax

from bulk_sgd.curvature.captured import Reading
from bulk_sgd.curvature.objective import Objective

_STEPS = 3  # so many functions of one source make a loop that builds them
_UNKNOWN = (
    "update is scaled by bulk_scale as a whole. While the state has as many "
    "failed_refreshes as refreshes, this remains so: give the solver more max_matvecs "
    "or a wider tol, and see whether the loss is finite."
)


class Watch:
    """Warns of losses compiled at every step, and of a subspace never found.

    `unknown` says what becomes of an update without a subspace, and what to look at.
    """

    def __init__(self, unknown: str = _UNKNOWN):
        self._unknown = unknown
        self._known = set()  # hashes of the readings that JAX holds programs for
        self._count = Counter()  # of functions, by source
        self._rebuilt = False  # whether a loss was, at every step
        self._refreshed = False

    def loss(self, value_fn: Any, params: Any):
        """Warns at the third function of one source that is new or reads new data."""
        if self._rebuilt or _traced(params):
            return
        whole = isinstance(value_fn, Objective)
        for fn in (value_fn.model_fn, value_fn.loss_fn) if whole else (value_fn,):
            fn = fn.func if isinstance(fn, jax.tree_util.Partial) else fn
            code = _code(fn)
            if code is None or not jax.tree_util.all_leaves([fn]):
                continue  # no function, or one with data of its own
            reading = hash(Reading.of(fn))
            if reading not in self._known:
                self._known.add(reading)
                self._count[code] += 1
                self._rebuilt |= self._count[code] == _STEPS
            if self._rebuilt:
                break
        if self._rebuilt:
            warnings.warn(
                f"value_fn is a new function at every step ({code.co_name}, "
                f"{code.co_filename}:{code.co_firstlineno}), or reads new data, so "
                "every step compiles it anew: jit the step, or pass one function, with "
                "what changes as the data of a jax.tree_util.Partial or a "
                "bulk_sgd.Objective.",
                stacklevel=5,
            )

    def subspace(self, state: Any):
        """Warns if the first refresh fails, so that no direction is known."""
        counts = state.refreshes, state.failed_refreshes
        if self._refreshed or _traced(counts):
            return
        refreshes, failed = map(int, counts)
        self._refreshed = refreshes > 0
        if self._refreshed and refreshes == failed:
            warnings.warn(
                "The first refresh failed: no subspace is known yet, and the "
                + self._unknown,
                stacklevel=5,
            )


def _code(fn) -> types.CodeType | None:
    """What a function runs, inside of a partial, a `jit` or a method of an object."""
    if isinstance(fn, functools.partial):
        return _code(fn.func)
    if not hasattr(fn, "__code__"):
        fn = getattr(fn, "__wrapped__", fn)
    found = fn if hasattr(fn, "__code__") else type(fn).__call__
    return getattr(found, "__code__", None)


def _traced(tree) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))
