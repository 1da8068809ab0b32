"""Runs the sweeps of the study, several at a time: `scripts/reproduce.sh` calls it.

A small network gains little from a second core, so each sweep gets cores of its own.
"""

import concurrent.futures
import os
import signal
import subprocess
import sys
import threading
import time

AXES = (
    *("seeds", "interpolation", "plane", "curvature", "learning_rate", "batch_size"),
    *("rank", "refresh", "warm_up", "curvature_data", "optimizer", "width_depth"),
    "loss",
)
TUNED = "sgd", "momentum"
_ENDS = {
    0: "",
    1: "{} failed, or cells of it did; the report says which.",
    2: "{} was refused, for the reason above.",
}


def sweeps(preset: str) -> dict[str, list[str]]:
    """The flags of each sweep of the study, by the name of its folder."""
    found = {axis: [f"--config=configs/ablations/{axis}.py:{preset}"] for axis in AXES}
    for optimizer in TUNED:
        found[f"pays_{optimizer}"] = [
            f"--config=configs/pays/mnist.py:{optimizer}",
            "--config.arms=sgd,scales(0.25,2),accelerated",
        ]
    return found


class Study:
    """Sweeps under way, and the worst of their exit statuses."""

    def __init__(self, workdir: str, jobs: int):
        self.status = 0
        self._workdir, self._jobs = workdir, jobs
        self._stopped, self._running = threading.Event(), []

    def run(self, flags: dict[str, list[str]]):
        """Runs all sweeps, `jobs` at a time, unless one is interrupted."""
        cores = _cores()
        shares = [cores[i :: self._jobs] for i in range(self._jobs)]
        pin = lambda: _pin(shares.pop())
        with concurrent.futures.ThreadPoolExecutor(self._jobs, initializer=pin) as pool:
            for done in [pool.submit(self._sweep, *item) for item in flags.items()]:
                done.result()

    def stop(self, *_):
        """Ends the sweeps under way, which keep what they have; begins no other."""
        self._stopped.set()
        for process in self._running:
            process.terminate()

    def _sweep(self, name, flags):
        if self._stopped.is_set():
            return
        start = time.monotonic()
        command = [sys.executable, "-m", "bulk_sgd.sweep", *flags]
        command += [f"--workdir={self._workdir}/{name}"]
        command += [f"--prefixes={self._workdir}/prefixes"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(command, **pipes) as process:
            self._running.append(process)
            for line in process.stdout:
                print(f"{name}: {line}", end="", flush=True)
        status = process.returncode
        self.status = max(self.status, status if status >= 0 else 128 - status)
        if status not in _ENDS:  # interrupted
            self.stop()
            return
        if status:
            print(_ENDS[status].format(name), file=sys.stderr, flush=True)
        print(f"{name} took {time.monotonic() - start:.0f} seconds", flush=True)


def main(preset: str, workdir: str, jobs: str):
    """Runs the study of a preset and writes its report; exits with the worst status."""
    default = len(_cores()) if preset == "cpu" else 1
    study = Study(workdir, int(jobs or default))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, study.stop)
    study.run(sweeps(preset))
    if study.status in _ENDS:
        report = [sys.executable, "-m", "bulk_sgd.report", f"--workdir={workdir}"]
        subprocess.run(report, check=True)
    sys.exit(study.status)


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _pin(cores):
    """Keeps this thread, and the processes that it starts, on these cores."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    main(*sys.argv[1:])
