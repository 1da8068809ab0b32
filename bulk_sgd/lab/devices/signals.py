"""Signals that ask a run to end, which it does after the dispatch under way."""

import os
import signal
import sys
import threading
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

_ENDING = signal.SIGINT, signal.SIGTERM
_GRACE = 5.0  # seconds for Python to handle the second signal
_received: list[int] = []


def install():
    """Takes note of SIGINT and SIGTERM; a second one ends the process.

    Where Python runs, it ends at once and leaves a record. Where a program on the
    device keeps Python waiting, it ends after `_GRACE` seconds.
    """
    global _received
    _received = []
    for number in _ENDING:
        signal.signal(number, _handle)
    # Python calls no handler while it waits for the device, but writes signals here.
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read, _received), daemon=True).start()


def _handle(number, _):
    _received.append(number)
    if len(_received) > 1:
        sys.exit(128 + number)


def _watch(read: int, handled: list[int]):
    """Ends the process if `_handle` does not get to the second signal in time."""
    count = 0
    while count < 2:
        number = os.read(read, 1)[0]
        count += number in _ENDING
    time.sleep(_GRACE)
    if len(handled) < 2:
        os._exit(128 + number)


def wanted() -> int:
    """The signal that asks for the end, 0 for none; called on all processes at once.

    A signal to any process counts for all, so that all end after the same step.
    """
    number = _received[0] if _received else 0
    if jax.process_count() > 1:
        number = int(np.max(multihost_utils.process_allgather(np.int32(number))))
    return number
