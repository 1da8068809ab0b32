"""The script that runs the sweeps of the study, with a program that plays a sweep."""

import os
import sys
import threading
import time

import pytest
import run_study
from paths import ROOT

SWEEP = """#!/bin/sh
case "$*" in
  *workdir=*/fails*) exit 1 ;;
  *workdir=*/refused*) echo "--workdir is wrong" >&2; exit 2 ;;
  *workdir=*/long*) touch "$(dirname "$0")/begun"; exec sleep 60 ;;
esac
nproc
"""


@pytest.fixture
def played(tmp_path, monkeypatch):
    program = tmp_path / "sweep"
    program.write_text(SWEEP)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return tmp_path


def test_every_sweep_has_cores_of_its_own_and_the_worst_status_counts(played, capfd):
    study = run_study.Study(str(played), jobs=2)
    study.run({"good": [], "fails": [], "refused": [], "last": []})
    assert study.status == 2
    out, err = capfd.readouterr()
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 2:
        assert "good: 1\n" in out
        assert "last: 1\n" in out
    assert "refused: --workdir is wrong\n" in out
    assert "fails failed, or cells of it did; the report says which.\n" in err
    assert "refused was refused, for the reason above.\n" in err
    assert "last took 0 seconds\n" in out


def test_an_interrupted_study_ends_its_sweeps_and_begins_no_other(played, capfd):
    study = run_study.Study(str(played), jobs=1)
    thread = threading.Thread(target=study.run, args=({"long": [], "next": []},))
    thread.start()
    while not (played / "begun").exists():
        time.sleep(0.01)
    study.stop()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert study.status == 143  # 128 + SIGTERM
    assert "next" not in capfd.readouterr().out


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_the_study_has_every_axis_but_that_of_solvers(preset):
    files = {path.stem for path in (ROOT / "configs/ablations").glob("*.py")}
    known = run_study.sweeps(preset)
    tuned = {"pays_sgd", "pays_momentum"}
    assert set(known) == files - {"base", "solver"} | tuned
    assert known["rank"] == [f"--config=configs/ablations/rank.py:{preset}"]
