"""Signals that ask a run to end, which it does after the dispatch under way."""

import signal
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

_received: list[int] = []


def install():
    """Takes note of SIGINT and SIGTERM; a second one ends the process at once."""
    _received.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _take)


def _take(number, _):
    if _received:
        sys.exit(128 + number)
    _received.append(number)


def wanted() -> int:
    """The signal that asks for the end, 0 for none; called on all processes at once.

    One that reached any process counts for all, so that all end after the same step.
    """
    number = _received[0] if _received else 0
    if jax.process_count() > 1:
        number = int(np.max(multihost_utils.process_allgather(np.int32(number))))
    return number
