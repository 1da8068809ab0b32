"""What a training loop outside of `jit` is warned of, once for each transform."""

import functools
import types
import warnings
from collections import Counter
from typing import Any

import jax

from bulk_sgd.curvature.captured import Reading

_STEPS = 3  # so many functions of one source make a loop that builds them


class Watch:
    """Warns of losses compiled at every step, and of a subspace never found."""

    def __init__(self):
        self._known = set()  # hashes of the readings that JAX holds programs for
        self._count = Counter()  # of functions, by source
        self._refreshed = False

    def loss(self, value_fn: Any, params: Any):
        """Warns at the third function of one source that is new or reads new data."""
        fn = value_fn.func if isinstance(value_fn, jax.tree_util.Partial) else value_fn
        source = fn.func if isinstance(fn, functools.partial) else fn
        source = getattr(source, "__func__", source)
        if not isinstance(source, types.FunctionType) or _traced(params):
            return
        reading = hash(Reading.of(fn))
        if reading in self._known:
            return
        self._known.add(reading)
        code = source.__code__
        self._count[code] += 1
        if self._count[code] == _STEPS:
            warnings.warn(
                f"value_fn is a new function at every step ({code.co_name}, "
                f"{code.co_filename}:{code.co_firstlineno}), or reads new data, so "
                "every step compiles it anew: jit the step, or pass one function, with "
                "what changes as the data of a jax.tree_util.Partial or a "
                "bulk_sgd.Objective.",
                stacklevel=4,
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
                "The first refresh failed: no subspace is known yet, and the update is "
                "scaled by bulk_scale as a whole. While the state has as many "
                "failed_refreshes as refreshes, this remains so: give the solver more "
                "max_matvecs or a wider tol, and see whether the loss is finite.",
                stacklevel=4,
            )


def _traced(tree) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))
