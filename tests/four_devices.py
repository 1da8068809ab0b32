"""Processes of four CPU devices."""

import os
import subprocess
import sys

from paths import ROOT

RANK, WINDOW = 6, 9  # of the runs in sharded_runs.py


def devices(count):
    """XLA's flags for so many CPU devices, and those of the tests."""
    count = f"--xla_force_host_platform_device_count={count}"
    return f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()


FOUR_DEVICES = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": devices(4),
    "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}",
}


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=FOUR_DEVICES,
        cwd=ROOT,
    )
