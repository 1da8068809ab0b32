"""Runs of a few dispatches, and ways to stop them in their midst."""

import itertools
import os
import pathlib
import signal

from tiny_runs import tiny

from bulk_sgd.lab.devices import signals
from bulk_sgd.lab.files import metrics


def config(**changes):
    """Prefix and two arms of 8 and 12 steps, a dispatch and a checkpoint each 2."""
    own = {"eval_every": 2, "checkpoint__every": 2, "optimizer__momentum": 0.5}
    own |= {"measures__step_every": 2, "measures__own": ("own_things:moved",)}
    return tiny(**own | changes)


def interrupt_after(monkeypatch, dispatches):
    """A signal that arrives in the dispatch of that number."""
    asked = iter(range(1_000))
    monkeypatch.setattr(
        signals, "wanted", lambda: signal.SIGTERM * (next(asked) == dispatches)
    )


class Killed(BaseException):
    """Nothing is saved on its way out, as with SIGKILL."""


def kill_at(monkeypatch, arm, step):
    """Raises `Killed` before a row of metrics."""
    write = metrics.MetricWriter.write

    def die(self, row):
        if (row["arm"], row["step"]) == (arm, step):
            raise Killed
        return write(self, row)

    monkeypatch.setattr(metrics.MetricWriter, "write", die)


def die_at(moment):
    """SIGKILL to this process at its write of that number: a row, or a file's name.

    Kills from outside may all come too late on a fast machine.
    """
    count = itertools.count(1)

    def mortal(write):
        def counted(*arguments):
            if next(count) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*arguments)

        return counted

    metrics.MetricWriter.write = mortal(metrics.MetricWriter.write)
    pathlib.Path.replace = mortal(pathlib.Path.replace)


def without_times(result):
    """What a record says of the prefix and the arms."""
    return {
        name: {key: value for key, value in entry.items() if "seconds" not in key}
        for name, entry in {"prefix": result["prefix"], **result["arms"]}.items()
    }
