"""How the processes of a job end together: by an error, a signal, and a loss."""

import signal
import subprocess
import sys
import time

import pytest
from paths import ROOT
from tiny_runs import rows_of
from two_processes import CONFIG, environment, main, start, wait

from bulk_sgd.lab.files import record

FAILING = """
import sys
from bulk_sgd.lab.training import run
write = run.Run.write
def fail(self, row):
    if row["step"] == 40:
        raise RuntimeError("broken on purpose")
    write(self, row)
if {index} == {failing}:
    run.Run.write = fail
sys.argv[0] = "bulk_sgd.main"
from bulk_sgd.lab.commands import train
train.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_exception_in_one_process_ends_the_job(tmp_path, failing):
    script = lambda index: FAILING.format(index=index, failing=failing)
    flags = main(tmp_path)(0)[2:]
    processes = start(lambda index: ["-c", script(index), *flags])
    began = time.monotonic()
    assert processes[failing].wait(timeout=300) == 1
    failed = time.monotonic()
    statuses, said = wait(processes, timeout=60)
    print(f"started {failed - began:.1f} s, others {time.monotonic() - failed:.1f} s")
    assert time.monotonic() - failed < 15
    assert all(status != 0 for status in statuses)
    assert "broken on purpose" in said[failing][1]


WAITING = """
import sys, time
import jax
from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.files import record

with distributed.job("on"):
    entry = {"status": "running", "seconds": 1.0}
    record.write(sys.argv[1], {"status": "running", "prefix": entry, "arms": {}})
    distributed.runs.add(sys.argv[1])
    print("ready", flush=True)
    time.sleep(300)  # as in a compilation, where no collective could fail
"""


def check_loss(processes, lost, workdir):
    """Kills a process; the other ends soon, in one sentence, and the record is true."""
    processes[lost].kill()
    killed = time.monotonic()
    other = 1 - lost
    assert processes[other].wait(timeout=60) == 1
    seconds = time.monotonic() - killed
    print(f"process {lost} lost, the other ended after {seconds:.1f} s")
    assert seconds < 15
    _, said = wait(processes)
    (sentence,) = said[other][1].strip().splitlines()
    assert f"was lost, so that process {other} ends too" in sentence
    assert "The same command goes on from the last checkpoint" in sentence
    found = record.read(workdir)
    assert found["status"] == "interrupted"
    assert found["reason"].endswith("was lost")


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_killed_process_ends_the_other_outside_of_collectives(tmp_path, lost):
    processes = start(lambda index: ["-c", WAITING, str(tmp_path)])
    for process in processes:
        assert any(line == "ready\n" for line in process.stdout)
    check_loss(processes, lost, tmp_path)


@pytest.mark.slow
def test_killed_process_ends_the_other_in_a_step(tmp_path):
    processes = start(main(tmp_path, "--config.num_steps=100000"))
    rows = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (rows.exists() and rows.read_text().count("\n") > 1):
        assert time.monotonic() < deadline
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.1)
    check_loss(processes, 1, tmp_path)


@pytest.mark.slow
def test_a_signal_to_one_process_ends_both_after_the_same_step(tmp_path):
    """And the job goes on, here as one process of one device.

    The workdirs are local: each process has its own, of which that of process 0 counts.
    """
    more = ("--config.num_steps=4000", "--config.checkpoint.every=20")

    def command(workdirs):
        return lambda index: main(tmp_path / workdirs[index], *more)(index)

    processes = start(command(["run", "other"]))
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while '"sgd"' not in (metrics.read_text() if metrics.exists() else ""):
        assert time.monotonic() < deadline
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    statuses, said = wait(processes)
    assert statuses == [128 + signal.SIGTERM] * 2, said
    assert record.read(tmp_path / "run")["status"] == "interrupted"
    (newest,) = {rows_of(tmp_path / "run")[-1]["step"]}
    assert not (tmp_path / "other").exists()
    # The processes change places, and the newest workdir is not where it is looked for.
    statuses, said = wait(start(command(["other", "run"])))
    assert statuses == [2, 2], said
    for _, error in said:
        assert "rows of metrics on the host of process 1 and 0 on that of pro" in error
    assert not (tmp_path / "other").exists()
    run = subprocess.Popen(
        [
            *(sys.executable, "-m", "bulk_sgd.main", *CONFIG, *more),
            f"--workdir={tmp_path / 'run'}",
        ],
        env=environment(1),
        cwd=ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert f"going on from sgd, step {newest}" in run.stderr.readline()
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=240) == 128 + signal.SIGTERM
    steps = [(row["arm"], row["step"]) for row in rows_of(tmp_path / "run")]
    assert len(set(steps)) == len(steps)
