"""A first signal asks a run to end, and a second one ends its process."""

import signal
import subprocess
import sys

import pytest
from paths import ROOT

from bulk_sgd.lab.commands import cli
from bulk_sgd.lab.devices import signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_said(capsys, number):
    """The first one asks for the end, a second one ends the process at once."""
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        cli.prepare()
        assert signals.wanted() == 0
        signal.raise_signal(number)
        assert signals.wanted() == number
        with pytest.raises(SystemExit) as ended, cli.reporting("runs/x"):
            signal.raise_signal(number)
        cli.prepare()
        assert signals.wanted() == 0
    finally:
        for which, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(which, handler)
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == f"interrupted by {number.name}: runs/x\n"


def test_a_second_signal_ends_a_process_that_waits_for_the_device():
    """Python calls no handler before a program on the device has ended."""
    script = (
        "import ctypes; from bulk_sgd.lab.devices import signals\n"
        "signals._GRACE = 0.1; signals.install(); print('ready', flush=True)\n"
        "lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, bytes(64)\n"
        "lock(mutex); lock(mutex)  # for ever, and no signal wakes it"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
    finally:
        process.kill()
