"""Launchers against stubs that note how they were called: usage, and pods of TPUs."""

import signal
import subprocess
import time

import pytest
from launch_stubs import COMMAND, JOB, LAUNCH, cloud_fixture  # noqa: F401

SCRIPTS = ("tpu_vm.sh", "gke.sh", "slurm.sh")


@pytest.mark.parametrize("script", SCRIPTS)
def test_usage_lists_every_variable_that_is_read(cloud, script):
    for arguments in ([], ["--help"]):
        result = cloud.run(script, *arguments)
        assert result.returncode == 0
        assert "scripts/launch/" in result.stdout
        assert "set -euo" not in result.stdout
    text = (LAUNCH / script).read_text()
    for line in text.splitlines():
        for name in line.replace('"', " ").split("${")[1:]:
            name = name.split(":")[0]
            if name.isupper() and f"{name}:-" in line:
                assert name == "WORKER" or name in result.stdout, name
    assert cloud.calls == []


MINE = (*COMMAND, "--config=configs/mine.py:quick")
TPU = {"ZONE": "z1", "BUCKET": "gs://b/runs", "NAME": "run-1"}


@pytest.mark.parametrize(
    ("script", "arguments", "environment", "match"),
    [
        ("tpu_vm.sh", ["create"], {}, "ZONE is not set"),
        ("tpu_vm.sh", ["fly"], {"ZONE": "z"}, "'fly' is not an action"),
        ("tpu_vm.sh", ["run", "python"], {"ZONE": "z"}, "a command comes after --"),
        ("tpu_vm.sh", ["run", *COMMAND], {"ZONE": "z"}, "BUCKET is not set"),
        ("tpu_vm.sh", ["up", *COMMAND], {"ZONE": "z"}, "BUCKET is not set"),
        ("tpu_vm.sh", ["run", *COMMAND], {**TPU, "BUCKET": "b"}, "BUCKET is 'b'"),
        ("tpu_vm.sh", ["watch"], {"ZONE": "z"}, "watch needs a command"),
        ("tpu_vm.sh", ["create"], {"ZONE": "z", "NAME": "a-"}, "NAME is 'a-'"),
        ("tpu_vm.sh", ["up", *MINE], TPU, "'configs/mine.py' is not in the commit"),
        (
            "tpu_vm.sh",
            ["--dry-run", "watch", *COMMAND, "--config.data.name=text:data/mine"],
            {**TPU, "DATA": "data"},
            "DATA is 'data'",
        ),
        (
            "tpu_vm.sh",
            ["--dry-run", "up", *COMMAND, "--config.data.name=tokens:data/mine.npy"],
            TPU,
            "'data/mine.npy' is not in the commit",
        ),
        ("gke.sh", ["fly"], {}, "'fly' is not an action"),
        ("gke.sh", ["xpk", *COMMAND], {}, "IMAGE is not set"),
        ("gke.sh", ["xpk", *COMMAND], {"IMAGE": "i"}, "CLUSTER is not set"),
        ("gke.sh", ["xpk", *COMMAND], {"IMAGE": "i", "CLUSTER": "c"}, "STORAGE is not"),
        ("gke.sh", ["apply"], {"IMAGE": "i"}, "apply needs a command"),
        ("gke.sh", ["apply", *MINE], {"IMAGE": "i"}, "'configs/mine.py' is not in the"),
        ("slurm.sh", ["python"], {}, "The command comes after --"),
        ("slurm.sh", [*COMMAND], {"GPUS": "0"}, "GPUS is '0'"),
        ("slurm.sh", [*COMMAND], {"CELLS": "x"}, "CELLS is 'x'"),
        ("slurm.sh", [*COMMAND], {"CELLS": "2"}, "has no --workdir=FOLDER"),
        ("slurm.sh", [*MINE, "--workdir=w"], {}, "'configs/mine.py' is not in"),
        ("slurm.sh", JOB, {"PYTHON_ENV": "/none"}, "PYTHON_ENV is '/none'"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_called(
    cloud, script, arguments, environment, match
):
    result = cloud.run(script, *arguments, **environment)
    assert result.returncode == 2
    assert match in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert [call for call in cloud.calls if call[0] != "git"] == []


def test_dry_run_prints_the_commands_and_calls_none(cloud):
    result = cloud.run("tpu_vm.sh", "--dry-run", "up", *COMMAND, **TPU)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert "bundle create" in lines[0]
    assert lines[1].startswith("gcloud compute tpus queued-resources create run-1")
    assert "worker.sh" in lines[-1]
    assert [call[0] for call in cloud.calls if call[0] != "git"] == []


def test_pod_is_created_awaited_set_up_and_started(cloud):
    # Two looks at the state before it is there.
    cloud.stub(
        "gcloud",
        f"""case "$*" in *describe*)
  echo >>{cloud.folder}/looks
  [ $(wc -l <{cloud.folder}/looks) -gt 2 ] && echo ACTIVE || echo WAITING_FOR_RESOURCES
esac""",
    )
    own = "--config.data.name=data/mine.npz"
    environment = TPU | {"SPOT": "0", "PROJECT": "p", "DATA": "gs://b/my data"}
    result = cloud.run("tpu_vm.sh", "up", *COMMAND, own, **environment)
    assert result.returncode == 0, result.stderr
    gcloud = [call for call in cloud.calls if call[0] == "gcloud"]
    create, *looks, copy, install, start = gcloud
    assert "--accelerator-type=v5litepod-16" in create
    assert "--spot" not in create
    assert all({"--zone=z1", "--project=p"} <= set(call) for call in gcloud)
    assert len(looks) == 3
    assert copy[4:5] == ["scp"]
    assert "--worker=all" in copy
    assert "git clone" in install[-3] + install[-4]
    command = next(word for word in start if word.startswith("--command="))
    assert r"DATA=gs://b/my\ data scripts" in command
    assert "worker.sh start run-1 gs://b/runs python -m bulk_sgd.main" in command
    # The quotes of the command survive the shell of the worker.
    echoed = subprocess.run(
        ["bash", "-c", command.partition(" && ")[2].replace("scripts/", "echo ")],
        capture_output=True,
        text=True,
    )
    assert "--config.arms=('sgd', 'dom_sgd')" in echoed.stdout


def test_a_refused_pod_is_not_set_up(cloud):
    cloud.stub("gcloud", 'case "$*" in *describe*) echo FAILED; esac')
    result = cloud.run("tpu_vm.sh", "up", *COMMAND, **TPU)
    assert result.returncode == 1
    assert "FAILED and will not become active" in result.stderr
    assert not any("scp" in call for call in cloud.calls)


def test_uncommitted_changes_are_not_left_behind_silently(cloud):
    cloud.stub("git", 'case "$*" in *status*) echo " M file";; esac')
    result = cloud.run("tpu_vm.sh", "setup", **TPU)
    assert result.returncode == 2
    assert "not committed" in result.stderr
    assert not any(call[0] == "gcloud" for call in cloud.calls)


def test_watch_starts_again_after_a_preemption_and_ends_with_the_command(cloud):
    # The first pod is preempted while it runs; on the second the command ends with 3.
    cloud.stub(
        "gcloud",
        f"""cd {cloud.folder}
case "$*" in
  *create*) echo >>pods; rm -f looks ;;
  *delete*) rm -f looks; touch gone ;;
  *describe*)
    echo >>looks
    if [ ! -f pods ] || [ -f gone -a $(wc -l <looks) = 1 -a $(wc -l <pods) = 1 ]; then
      exit 1
    fi
    [ $(wc -l <pods) = 1 ] && [ $(wc -l <looks) -gt 2 ] && echo SUSPENDED || echo ACTIVE
    ;;
  *outcome*) [ $(wc -l <pods) = 1 ] || echo 3 ;;
esac""",
    )
    result = cloud.run("tpu_vm.sh", "watch", *COMMAND, **TPU)
    assert result.returncode == 3, result.stderr
    assert kinds(cloud) == [
        *("create", "worker.sh start", "outcome", "delete"),
        *("create", "worker.sh start", "outcome", "delete"),
    ]
    assert "SUSPENDED; it is deleted and requested again" in result.stderr
    assert sum("bundle" in call for call in cloud.calls) == 1  # of one commit


def kinds(cloud):
    """What gcloud was asked for, without looks at the state and setup."""
    told = [" ".join(call) for call in cloud.calls if call[0] == "gcloud"]
    names = ("create", "delete", "worker.sh start", "outcome")
    found = [next((name for name in names if name in one), None) for one in told]
    return [name for name in found if name]


def test_watch_goes_on_with_a_pod_that_is_there(cloud):
    cloud.stub(
        "gcloud", 'case "$*" in *describe*) echo ACTIVE;; *outcome*) echo 0;; esac'
    )
    assert cloud.run("tpu_vm.sh", "watch", *COMMAND, **TPU).returncode == 0
    assert kinds(cloud) == ["outcome", "delete"]


def test_watch_gives_a_pod_back_that_cannot_be_set_up(cloud):
    cloud.stub(
        "gcloud",
        f"""cd {cloud.folder}
case "$*" in
  *create*) touch pod ;;
  *describe*) [ -f pod ] && echo ACTIVE ;;
  *scp*) exit 1 ;;
esac""",
    )
    result = cloud.run("tpu_vm.sh", "watch", *COMMAND, **TPU)
    assert result.returncode == 1
    assert "Setting up run-1 failed" in result.stderr
    assert kinds(cloud) == ["create", "delete"]


@pytest.mark.parametrize("action", ["logs", "stop", "status", "delete", "list", "wait"])
def test_other_actions_call_gcloud(cloud, action):
    cloud.stub("gcloud", "echo ACTIVE")
    assert cloud.run("tpu_vm.sh", action, **TPU).returncode == 0
    assert all("--zone=z1" in call for call in cloud.calls)
    assert cloud.calls


@pytest.fixture
def worker(cloud, tmp_path):
    """A checkout with the worker script, and a bucket that holds an earlier run."""
    folder = tmp_path / "repository" / "scripts" / "launch"
    folder.mkdir(parents=True)
    for name in ("worker.sh", "common.sh"):
        (folder / name).write_text((LAUNCH / name).read_text())
        (folder / name).chmod(0o755)
    cloud.stub("gcloud", 'case "$*" in *ls*) ;; esac')
    cloud.stub(
        "train",
        f"""echo "at work"; trap "exit 143" TERM
until [ -f {cloud.folder}/end ]; do sleep 0.05; done""",
    )

    def call(action, *arguments, index="0", **environment):
        return subprocess.run(
            [folder / "worker.sh", action, "run-1", *arguments],
            env=cloud.environment
            | {"WORKER_INDEX": index, "SYNC": "0.1"}
            | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return call


def until(condition):
    """What `condition` returns, as soon as that is true."""
    deadline = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def outcome(worker):
    return until(lambda: worker("outcome").stdout.strip())


def test_worker_0_restores_and_keeps_the_workdir(cloud, worker):
    rsync = lambda: [call[-2:] for call in cloud.calls if "rsync" in call]
    # It outlives the connection.
    assert worker("start", "gs://b", "train", "--x").returncode == 0
    assert worker("start", "gs://b", "train").returncode == 2
    assert "running" in worker("status").stdout
    # Copies of what is there so far, every SYNC seconds.
    so_far = until(lambda: rsync()[2:] and rsync())
    (cloud.folder / "end").touch()
    assert outcome(worker) == "0"
    train = next(call for call in cloud.calls if call[0] == "train")
    assert train[1:] == ["--x", "--workdir=runs/run-1", "--distributed=on"]
    first, *copies = rsync()
    assert first == ["gs://b/run-1", "runs/run-1"]
    assert len(copies) >= len(so_far)  # another one at the end
    assert all(copy == ["runs/run-1", "gs://b/run-1"] for copy in copies)


def test_other_workers_only_fetch_data(cloud, worker):
    (cloud.folder / "end").touch()
    worker("start", "gs://b", "train", index="1", DATA="gs://b/data")
    assert outcome(worker) == "0"
    fetch, train = cloud.calls
    assert fetch[:3] + fetch[-2:] == [
        "gcloud",
        "storage",
        "rsync",
        "gs://b/data",
        "data",
    ]
    assert train[0] == "train"


def test_nothing_starts_where_the_workdir_cannot_be_fetched(cloud, worker):
    cloud.stub("gcloud", 'case "$*" in *rsync*) exit 1; esac')
    worker("start", "gs://b", "train")
    assert outcome(worker) == "1"
    assert not any(call[0] == "train" for call in cloud.calls)
    assert not any("--delete-unmatched" in " ".join(call) for call in cloud.calls)


def test_stop_reaches_the_command(cloud, worker):
    worker("start", "gs://b", "train")
    until(lambda: any(call[0] == "train" for call in cloud.calls))
    assert worker("stop").returncode == 0
    assert outcome(worker) == str(128 + signal.SIGTERM)
    assert cloud.calls[-1][-2:] == ["runs/run-1", "gs://b/run-1"]
