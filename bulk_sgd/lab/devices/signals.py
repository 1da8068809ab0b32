"""Signals that ask a run to end, which it does after the dispatch under way."""

import os
import queue
import signal
import socket
import sys
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

_ENDING = signal.SIGINT, signal.SIGTERM
_GRACE = 5.0  # seconds for a record of the end, and for what is being written
_received: list[int] = []
_installed = queue.SimpleQueue()
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
        _watch.extend(socket.socketpair())
        _watch[1].setblocking(False)
        signal.set_wakeup_fd(_watch[1].fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_watch_signals, daemon=True).start()
    _installed.put(_received)
    _watch[1].send(b"\0")  # in line with the signals before and after it


def _take(number, _):
    _received.append(number)
    if len(_received) > 1:
        sys.exit(128 + number)


def _watch_signals():
    """Has the process ended by force a while after the second signal."""
    taken, count = [], 0
    while received := _watch[0].recv(1):
        if received == b"\0":
            taken, count = _installed.get(), 0
        elif received[0] in _ENDING:
            count += 1
            if count != 2:
                continue
            timer = threading.Timer(_GRACE, _end, (taken, received[0]))
            timer.daemon = True
            timer.start()


def _end(taken, number):
    if len(taken) < 2:  # `_take` has not been called for the second one
        os._exit(128 + number)


def wanted() -> int:
    """The signal that asks for the end, 0 for none; called on all processes at once.

    One that reached any process counts for all, so that all end after the same step.
    """
    number = _received[0] if _received else 0
    if jax.process_count() > 1:
        number = int(np.max(multihost_utils.process_allgather(np.int32(number))))
    return number
