"""Runs that are interrupted or killed go on as if nothing had been."""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import orbax.checkpoint as ocp
import pytest
from four_devices import devices
from interruptions import Killed, config, interrupt_after, kill_at, without_times
from paths import ROOT
from tiny_runs import numbers, rows_of

from bulk_sgd.lab.files import metrics, record
from bulk_sgd.lab.training import checkpoint, train

KILLS = int(os.environ.get("KILLS", "4"))  # each takes ten seconds
BY_ALIGNMENT = {"switch__alignment": 0.3, "switch__step": 15}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train.train_and_evaluate(config(), workdir)


# Dispatches 0 to 3 are the prefix, 4 to 9 the first arm, 10 to 15 the second; the last
# of each ends its stretch, so that there is nothing to save.
@pytest.mark.parametrize(
    "dispatches",
    [*(pytest.param(x, marks=pytest.mark.slow) for x in (0, 3, 7, 9)), 2, 4, 12],
)
def test_interrupted_run_goes_on_bit_for_bit(
    undisturbed, tmp_path, monkeypatch, dispatches
):
    with monkeypatch.context() as patch:
        interrupt_after(patch, dispatches)
        with pytest.raises(SystemExit) as ended:
            train.train_and_evaluate(config(), tmp_path)
    assert ended.value.code == 128 + signal.SIGTERM
    assert record.read(tmp_path)["status"] == "interrupted"
    result = train.train_and_evaluate(config(), tmp_path)
    assert numbers(tmp_path) == numbers(undisturbed[0])
    assert without_times(result) == without_times(undisturbed[1])
    assert result["switch"] == undisturbed[1]["switch"]
    assert not (tmp_path / "attempts").exists()


@pytest.mark.slow
def test_prefix_that_an_alignment_ends_goes_on(tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    result = train.train_and_evaluate(config(**BY_ALIGNMENT), whole)
    assert "average alignment" in result["switch"]["reason"]
    for dispatches in (1, 6):
        workdir = tmp_path / str(dispatches)
        with monkeypatch.context() as patch:
            interrupt_after(patch, dispatches)
            with pytest.raises(SystemExit):
                train.train_and_evaluate(config(**BY_ALIGNMENT), workdir)
        train.train_and_evaluate(config(**BY_ALIGNMENT), workdir)
        assert numbers(workdir) == numbers(whole)


@pytest.mark.slow
def test_a_basis_in_factors_goes_on(tmp_path, monkeypatch):
    space = {"solver": "streaming", "data": "batch", "factors": 1}
    fields = {f"subspace__{name}": value for name, value in space.items()}
    made = lambda: config(arms=("bulk_sgd",), **fields)
    train.train_and_evaluate(made(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 6)
        with pytest.raises(SystemExit):
            train.train_and_evaluate(made(), tmp_path / "part")
    train.train_and_evaluate(made(), tmp_path / "part")
    assert numbers(tmp_path / "part") == numbers(tmp_path / "whole")


def test_killed_run_goes_on_from_the_last_checkpoint(
    undisturbed, tmp_path, monkeypatch, capsys
):
    """Rows after the checkpoint are taken back and written again."""
    for arm, step in (("prefix", 8), ("sgd", 16), ("bulk_sgd", 20)):
        with monkeypatch.context() as patch:
            kill_at(patch, arm, step)
            with pytest.raises(Killed):
                train.train_and_evaluate(config(checkpoint__every=4), tmp_path)
    train.train_and_evaluate(config(checkpoint__every=4), tmp_path)
    places = re.findall(r"going on from (.*)\.", capsys.readouterr().err)
    # The last is the state from which the arm could grow.
    assert places == ["prefix, step 4", "sgd, step 12", "bulk_sgd, step 18"]
    assert numbers(tmp_path) == numbers(undisturbed[0])
    assert not (tmp_path / "attempts").exists()


def test_without_checkpoints_a_run_starts_again(tmp_path, monkeypatch):
    plain = config(checkpoint__every=0)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(SystemExit):
            train.train_and_evaluate(plain, tmp_path)
    assert not (tmp_path / checkpoint.FOLDER).exists()
    train.train_and_evaluate(plain, tmp_path)
    assert (tmp_path / "attempts" / "1" / record.FILE).exists()


def damage(folder):
    """Cuts every file of a checkpoint to half, its metadata included."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def states(workdir):
    folders = (workdir / checkpoint.FOLDER / "states").iterdir()
    return sorted((path for path in folders), key=lambda path: int(path.name))


@pytest.mark.parametrize("damaged", [1, 2])
def test_damaged_checkpoints_are_passed_over(
    undisturbed, tmp_path, monkeypatch, capsys, damaged
):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        with pytest.raises(SystemExit):
            train.train_and_evaluate(config(), tmp_path)
    found = states(tmp_path)
    assert len(found) == 2  # as many as are kept
    for folder in found[-damaged:]:
        damage(folder)
    train.train_and_evaluate(config(), tmp_path)
    told = capsys.readouterr().err
    assert told.count("cannot be read") == damaged
    assert ("going on from sgd" in told) == (damaged == 1)
    # Where none is left, the arm starts again from the fork.
    assert ("going on from the fork, step 8" in told) == (damaged == 2)
    assert not (tmp_path / "attempts").exists()
    assert numbers(tmp_path) == numbers(undisturbed[0])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"subspace__rank": 2},
            "of another config, which differs in config.subspace.r",
        ),
        (
            {"model__hidden": (4,)},
            "of another config, .* config.model.hidden; choose an",
        ),
        ({}, r"of \d+ parameters, not 510; choose another workdir"),
    ],
)
def test_checkpoints_of_another_run_are_refused_and_stay(
    undisturbed, tmp_path, monkeypatch, changes, match
):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        with pytest.raises(SystemExit):
            train.train_and_evaluate(config(), tmp_path)
    (tmp_path / record.FILE).unlink()  # else it is refused for its record
    found = states(tmp_path)
    with monkeypatch.context() as patch:
        if not changes:  # the same config with other code or data
            patch.setattr(checkpoint.basis, "size", lambda tree: 510)
        with pytest.raises(ValueError, match=match):
            train.train_and_evaluate(config(**changes), tmp_path)
    assert states(tmp_path) == found
    train.train_and_evaluate(config(), tmp_path)
    assert numbers(tmp_path) == numbers(undisturbed[0])


def test_full_disk_is_said_and_the_last_checkpoint_stays(
    undisturbed, tmp_path, monkeypatch
):
    save = ocp.CheckpointManager.save
    calls = iter(range(1_000))

    def fill(self, *arguments, **options):
        if next(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", fill)
        with pytest.raises(
            OSError, match=r"No space left on device.*the last one stays"
        ):
            train.train_and_evaluate(config(), tmp_path)
    assert record.read(tmp_path)["status"] == "failed"
    assert states(tmp_path)
    train.train_and_evaluate(config(), tmp_path)
    assert numbers(tmp_path) == numbers(undisturbed[0])


def test_checkpoints_kept(tmp_path):
    train.train_and_evaluate(config(checkpoint__keep=0, arms=("sgd",)), tmp_path)
    # Three within the prefix, five within the arm: none where a stretch ends.
    assert len(states(tmp_path)) == 3 + 5


def start(workdir, environment=None):
    script = (
        "import sys; sys.path[:0] = ['tests', 'tests/lab/training']\n"
        "import conftest, test_checkpoint\n"
        "from bulk_sgd.lab.devices import signals\n"
        "from bulk_sgd.lab.training import train\n"
        "signals.install()\n"
        f"train.train_and_evaluate(test_checkpoint.config(), {str(workdir)!r})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_kills_leave_no_trace(undisturbed, tmp_path):
    """SIGKILL at random moments of the run, some of them in the midst of a save."""
    moments = random.Random(0)
    kills = runs = 0
    while kills < KILLS:
        workdir = tmp_path / str(runs)
        process = start(workdir)
        before = time.monotonic()
        while not (workdir / metrics.FILE).exists() and process.poll() is None:
            assert time.monotonic() - before < 300
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 4))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        else:  # it was quicker: the next kills want a run of their own
            assert process.returncode == 0, process.stderr.read()
            runs += 1
    assert start(tmp_path / str(runs)).wait() == 0
    for index in range(runs + 1):
        assert numbers(tmp_path / str(index)) == numbers(undisturbed[0])
        found = json.loads((tmp_path / str(index) / record.FILE).read_text())
        assert found["status"] == "complete"


@pytest.mark.slow
def test_goes_on_on_other_devices(undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 12)
        with pytest.raises(SystemExit):
            train.train_and_evaluate(config(), tmp_path)
    process = start(tmp_path, {"XLA_FLAGS": devices(2), "JAX_PLATFORMS": "cpu"})
    assert process.wait() == 0, process.stderr.read()
    assert "going on from bulk_sgd, step 14" in process.stderr.read()
    for mine, alone in zip(rows_of(tmp_path), rows_of(undisturbed[0]), strict=True):
        # Sums in another order, and solves to a tolerance of 1e-5 of λ₁.
        assert mine["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-4)
