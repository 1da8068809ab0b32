"""Rows in services, by what their offline modes leave."""

import json
import struct
import time

import mlflow
import pytest
from tiny_runs import tiny
from wandb.proto import wandb_internal_pb2

from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.files import loggers, record
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


def write(workdir, **fields):
    """Writes `ROWS` as a run would that was interrupted after its third row."""
    workdir.mkdir()
    plain = record.plain(tiny(**fields))
    for rows in (ROWS[:3], ROWS[3:]):
        writer = MetricWriter(workdir, plain)
        for row in rows:
            writer.write(row)
        writer.close()
        if plain["wandb"]:  # its folders are named by the second
            time.sleep(1.1)
    return plain


def test_mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    plain = write(tmp_path / "a", mlflow="curvature")
    write(tmp_path / "b", mlflow="curvature")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("curvature").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert runs.keys() == {f"{x}/{arm}" for x in "ab" for arm in LOGGED}
    for arm, logged in LOGGED.items():
        run = runs[f"a/{arm}"]
        assert run.info.status == "FINISHED"
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
    write(tmp_path / "a", wandb="team/curvature")
    ids, found = {}, {}
    for path in sorted((tmp_path / "a" / "wandb").glob("offline-run-*/*.wandb")):
        for entry in records(path):
            if entry.HasField("run"):
                run = entry.run
                arm = run.display_name.removeprefix("a/")
                ids.setdefault(arm, set()).add(run.run_id)
                assert (run.entity, run.project) == ("team", "curvature")
                assert run.run_group == str(tmp_path / "a")[-128:]
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


def test_a_missing_package_is_said_before_anything_starts(monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    config_lib.validate(tiny())
    sentence = r"config.wandb is 'x', but the package wandb is missing; .*'.\[wandb\]'"
    with pytest.raises(ValueError, match=sentence):
        config_lib.validate(tiny(wandb="x"))


def test_loggers_change_no_result():
    plain = record.plain(tiny())
    assert not record.changes(plain, plain | {"wandb": "x", "mlflow": "y"})
    before = {name: x for name, x in plain.items() if name not in loggers.LOGGERS}
    assert not record.changes(before, plain)  # of a version without them
