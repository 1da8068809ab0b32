"""Signals that ask a run to end, which it does after the dispatch under way."""

import os
import signal
import socket
import sys
import threading
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

_ENDING = signal.SIGINT, signal.SIGTERM
_GRACE = 5.0  # seconds for a record of the end, and for what is being written
_received: list[int] = []
_watch: list[socket.socket] = []


def install():
    """Takes note of SIGINT and SIGTERM; a second one ends the process.

    At once where Python runs, which leaves a record of it, and after seconds where a
    program on the device keeps it waiting.
    """
    global _received
    _received = []
    for number in _ENDING:
        signal.signal(number, _take)
    if not _watch:
        # Python calls `_take` when the device is done, but writes here before that.
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        _watch.extend((reader, writer))
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_end_by_force, args=(reader,), daemon=True).start()


def _take(number, _):
    _received.append(number)
    if len(_received) > 1:
        sys.exit(128 + number)


def _end_by_force(reader):
    """Ends the process where `_take` has not a while after the second signal."""
    taken, count = None, 0
    while received := reader.recv(1):
        if received[0] not in _ENDING:
            continue
        count = count + 1 if taken is _received else 1
        taken = _received
        if count > 1:
            time.sleep(_GRACE)
            if len(taken) < 2:
                os._exit(128 + received[0])


def wanted() -> int:
    """The signal that asks for the end, 0 for none; called on all processes at once.

    One that reached any process counts for all, so that all end after the same step.
    """
    number = _received[0] if _received else 0
    if jax.process_count() > 1:
        number = int(np.max(multihost_utils.process_allgather(np.int32(number))))
    return number
