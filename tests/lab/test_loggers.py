"""Rows in services, by what their offline modes leave."""

import json
import struct
import time

import mlflow
import pytest
from tiny_runs import tiny
from wandb.proto import wandb_internal_pb2

from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.files import identities, loggers, record
from bulk_sgd.lab.files.metrics import MetricWriter

ROWS = [
    {"arm": "prefix", "step": 0, "loss": 2.0, "values": [3.0, float("nan")]},
    {"arm": "prefix", "step": 5, "loss": 1.0, "values": [4, 5], "note": None},
    {"arm": "scales(0.5,2)", "step": 5, "loss": 1.0},
    {"arm": "scales(0.5,2)", "step": 10, "loss": float("inf"), "own/x": 7},
]
LOGGED = {
    "prefix": [
        *((0, "loss", 2), (0, "values/1", 3)),
        *((5, "loss", 1), (5, "values/1", 4), (5, "values/2", 5)),
    ],
    "scales(0.5,2)": [(5, "loss", 1), (10, "own/x", 7)],
}


ENDS = {"prefix": record.COMPLETE, "scales(0.5,2)": record.DIVERGED}


def write(workdir, ends=ENDS, **fields):
    """Writes `ROWS` as a run would that was interrupted after its third row."""
    workdir.mkdir()
    plain = identities.plain(tiny(**fields))
    for rows in (ROWS[:3], ROWS[3:]):
        writer = MetricWriter(workdir, plain)
        for row in rows:
            writer.write(row)
        writer.close(ends)
        if plain["wandb"]:  # its folders are named by the second
            time.sleep(1.1)
    return plain


def test_mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    plain = write(tmp_path / "a", mlflow="curvature")
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name("curvature")
    # The other run makes the experiment between the look and the making.
    looks = iter([None, found, found])
    with monkeypatch.context() as patch:
        patch.setattr(
            mlflow.MlflowClient, "get_experiment_by_name", lambda *_: next(looks)
        )
        ends = dict(zip(LOGGED, (record.FAILED, record.INTERRUPTED)))
        write(tmp_path / "b", ends, mlflow="curvature")
    experiment = client.get_experiment_by_name("curvature").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert runs.keys() == {f"{x}/{arm}" for x in "ab" for arm in LOGGED}
    for arm, logged in LOGGED.items():
        run = runs[f"a/{arm}"]
        assert run.info.status == "FINISHED"
        end = {"prefix": "FAILED", "scales(0.5,2)": "KILLED"}[arm]
        assert runs[f"b/{arm}"].info.status == end
        found = [
            (metric.step, name, metric.value)
            for name in run.data.metrics
            for metric in client.get_metric_history(run.info.run_id, name)
        ]
        assert sorted(found) == logged
        path = client.download_artifacts(run.info.run_id, "config.json")
        with open(path) as file:
            assert json.load(file) == plain


def test_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ends = ENDS | {"prefix": record.INTERRUPTED}
    write(tmp_path / "a", ends, wandb="team/curvature")
    ids, found, codes = {}, {}, {}
    for path in sorted((tmp_path / "a" / "wandb").glob("offline-run-*/*.wandb")):
        for entry in records(path):
            if entry.HasField("run"):
                run = entry.run
                arm = run.display_name.removeprefix("a/")
                ids.setdefault(arm, set()).add(run.run_id)
                assert (run.entity, run.project) == ("team", "curvature")
                assert run.run_group == str(tmp_path / "a")[-128:]
            if entry.HasField("exit"):
                codes[arm] = entry.exit.exit_code
            if entry.HasField("history"):
                items = {
                    "/".join(x.nested_key) or x.key: json.loads(x.value_json)
                    for x in entry.history.item
                }
                found.setdefault(arm, []).extend(
                    (items["_step"], name, value)
                    for name, value in items.items()
                    if not name.startswith("_")
                )
    assert {arm: sorted(x) for arm, x in found.items()} == LOGGED
    kept = json.loads((tmp_path / "a" / loggers.FILE).read_text())
    assert ids == {arm: {x["wandb"]} for arm, x in kept.items()}
    assert codes == {"prefix": 1, "scales(0.5,2)": 0}


def records(path):
    """The records of a file that W&B writes offline."""
    data, place, content = path.read_bytes(), 7, b""
    while place + 7 <= len(data):  # the format of LevelDB's logs
        left = 32_768 - place % 32_768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        content += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            yield wandb_internal_pb2.Record.FromString(content)
            content = b""


def test_tensorboard_and_no_logger_at_all(tmp_path):
    write(tmp_path / "a", tensorboard=True)
    events = (tmp_path / "a" / "tensorboard").glob("*/events*")
    assert {path.parent.name for path in events} == {*LOGGED}
    write(tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["metrics.jsonl"]


BEFORE = ["prefix", 0, 5, "scales(0.5,2)", 5, "complete", "diverged"]
RESUMED = ["scales(0.5,2)", 10, "diverged"]


@pytest.mark.parametrize(
    ("fails", "left", "lost"),
    [
        (5, ["prefix", 0, "scales(0.5,2)", *RESUMED], 2),
        ("complete", [*BEFORE[:5], "diverged", *RESUMED], 1),
        ("scales(0.5,2)", ["prefix", 0, 5, "complete"], 2),
    ],
)
def test_a_series_that_fails_is_given_up(
    tmp_path, monkeypatch, capsys, fails, left, lost
):
    events = {"tensorboard": [], "mlflow": []}

    def service(name):
        def note(event):
            if (name, event) == ("tensorboard", fails):
                raise ConnectionError("it is away")
            events[name].append(event)

        def begin(config, workdir, arm, known):
            note(arm)
            return loggers.Series(lambda numbers, step: note(step), note, "id")

        return begin

    monkeypatch.setattr(loggers, "LOGGERS", {name: service(name) for name in events})
    write(tmp_path / "a", tensorboard=True, mlflow="x")
    assert events == {"tensorboard": left, "mlflow": BEFORE + RESUMED}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lost
    assert all("tensorboard logs no more of" in x and "away" in x for x in said)
    fails = "prefix"  # at the first row nothing is lost yet
    with pytest.raises(ConnectionError):
        write(tmp_path / "b", tensorboard=True, mlflow="x")


def test_a_missing_package_is_said_before_anything_starts(monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    config_lib.validate(tiny())
    sentence = r"config.wandb is 'x', but the package wandb is missing; .*'.\[wandb\]'"
    with pytest.raises(ValueError, match=sentence):
        config_lib.validate(tiny(wandb="x"))


def test_loggers_change_no_result():
    plain = identities.plain(tiny())
    assert not identities.changes(plain, plain | {"wandb": "x", "mlflow": "y"})
    before = {name: x for name, x in plain.items() if name not in loggers.LOGGERS}
    assert not identities.changes(before, plain)  # of a version without them
