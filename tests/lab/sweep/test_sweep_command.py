"""What sweeps refuse before anything is made, and the program that runs them."""

import importlib
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
from paths import ROOT
from tiny_runs import CELLS, quiet, tiny

from bulk_sgd.lab.commands import sweep as sweep_command
from bulk_sgd.lab.network_checks import config_doubts
from bulk_sgd.lab.sweep import sweep, tuning


@pytest.mark.parametrize(
    ("cells", "options", "match"),
    [
        ([{"subspace.rang": 1}], {}, r"cell 0: config\.subspace\.rang"),
        ([{"seed": 0}, {"seed": 0}], {}, "cells 0 and 1 have the same config"),
        ([], {}, "no cells"),
        (None, {}, "The cells are None"),
        ([{"seed": 1}, {"batch_size": 61}], {}, r"cell 1: config\.batch_size is 61"),
        (
            [{"subspace.rank": 9_999, "subspace.max_matvecs": 0}],
            {},
            r"cell 0: config\.subspace\.rank is 9999",
        ),
        (CELLS, {"only": 4}, "cell is 4; it must be from 0 to 3"),
        (CELLS, {"lanes": 0}, "lanes is 0"),
    ],
)
def test_wrong_sweeps_are_refused_before_anything_is_made(
    tmp_path, cells, options, match
):
    with pytest.raises(ValueError, match=match):
        sweep.run_sweep(tiny(), cells, tmp_path / "new", say=quiet, **options)
    assert not (tmp_path / "new").exists()


def test_folder_of_prefixes_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"prefixes is '.*file', which is a file"):
        sweep.run_sweep(
            tiny(), CELLS, tmp_path / "s", prefixes=tmp_path / "file", say=quiet
        )


def command(*arguments):
    return [sys.executable, "-m", "bulk_sgd.sweep", *arguments]


@pytest.mark.parametrize("path", sorted((ROOT / "configs/ablations").glob("*.py")))
@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_ablation_configs_are_valid(path, preset):
    if path.stem == "base":
        return
    sys.path.insert(0, str(ROOT))
    try:
        module = __import__(f"configs.ablations.{path.stem}", fromlist=["x"])
    finally:
        sys.path.pop(0)
    cells = module.get_sweep(preset)
    assert len(sweep.configs_of(module.get_config(preset), cells)) >= 3
    with pytest.raises(ValueError, match="preset is 'tpu'"):
        module.get_config("tpu")


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw", "muon"])
@pytest.mark.parametrize("task", ["mnist", "mnist_batch_250", "cnn", "vit", "decoder"])
def test_configs_of_pays_are_valid(monkeypatch, task, optimizer):
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module(f"configs.pays.{task}")
    for preset, num_seeds in ((optimizer, 3), (f"{optimizer}-quick", 1)):
        cells = module.get_sweep(preset)
        configs = sweep.configs_of(module.get_config(preset), cells)
        assert tuning.check(module.tune, cells, configs).reference == "sgd"
        assert {cell["seed"] for cell in cells} == {*range(num_seeds)}
        own = task == "mnist" and optimizer in ("adamw", "muon")
        metrics = {config.subspace.preconditioned for config in configs}
        assert metrics == ({False, True} if own else {False})
        config = configs[0]
        assert config.optimizer.decay_steps == config.num_steps
        assert config.optimizer.warmup_steps in (0, config.switch.step)
        assert "accelerated" in config.arms
        assert not config_doubts(config)  # so it acts
    assert config.num_steps == 60
    with pytest.raises(ValueError, match="preset is 'adagrad'; it must be one of"):
        module.get_config("adagrad")


def test_label_noise_is_an_option_of_the_data(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "configs")
    module = importlib.import_module("label_noise")
    configs = sweep.configs_of(module.get_config(), module.get_sweep())
    assert len(configs) == 12
    assert {config.data.options.noise for config in configs} == {0.0, 0.2}
    clean, noisy = module.clumps(), module.clumps(noise=0.2)
    for part, share in (("train", 0.2), ("test", 0.0)):
        wrong = np.mean(clean[f"y_{part}"] != noisy[f"y_{part}"])
        assert wrong == pytest.approx(share, abs=0.05)  # three deviations of 600


@pytest.mark.slow
def test_list_cells_and_refusal():
    config = "--config=configs/ablations/refresh.py"
    listed, refused = (
        subprocess.run(command(config, *more), cwd=ROOT, capture_output=True, text=True)
        for more in (["--list_cells"], ["--workdir=x", "--cell=99"])
    )
    first = listed.stdout.splitlines()[0].split(" ", 1)
    assert first[0] == "0"
    assert json.loads(first[1]) == {"subspace.refresh_every": 1, "seed": 0}
    assert refused.returncode == 2
    assert "cell is 99" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def fail():
    return {}["absent"]


@pytest.mark.parametrize(
    ("get_sweep", "match"),
    [
        (lambda: None, "The cells are None"),
        (lambda: [3], "cell 0 is 3"),
        (fail, r"get_sweep of .* fails with KeyError: 'absent' \(line \d+\)\."),
        (lambda preset: [], "fails with TypeError"),
    ],
)
def test_get_sweep_that_gives_no_cells(get_sweep, match):
    with pytest.raises(ValueError, match=match):
        sweep_command._call(get_sweep, [], __file__)


class Values(types.SimpleNamespace):
    """What the flags of the program say."""

    def __getitem__(self, name):
        return getattr(self, name)


def run_program(monkeypatch, path, overrides=(), **values):
    """The program with a config file, fields set on the command line, and flags."""
    flag = types.SimpleNamespace(
        get_config_filename=lambda _: str(path), get_override_values=lambda _: overrides
    )
    monkeypatch.setattr(sweep_command, "config_flags", flag)
    flags = {"workdir": None, "prefixes": None, "lanes": 1, "cell": None}
    flags |= {"config": tiny(), "list_cells": False, "estimate": False}
    sweep_command._run(Values(**flags | values))


REFRESH, LIST = "ablations/refresh.py", {"list_cells": True}
EVERY = "subspace.refresh_every"


@pytest.mark.parametrize(
    ("path", "overrides", "values", "match"),
    [
        (REFRESH, [], {}, "--workdir is missing"),
        ("mnist_mlp.py", [], LIST, "has no get_sweep"),
        (REFRESH, [], LIST | {"config": tiny(batch_size=0)}, "config.batch_size is 0"),
        (REFRESH, [EVERY], LIST, f"--config.{EVERY} is set on the command line, but"),
    ],
)
def test_flags_that_do_not_fit_the_file(monkeypatch, path, overrides, values, match):
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(ValueError, match=match):
        run_program(monkeypatch, ROOT / "configs" / path, overrides, **values)


@pytest.mark.parametrize(("cell", "status"), [(None, 1), (0, 1), (1, None), (2, None)])
def test_array_job_answers_for_its_own_cell(tmp_path, monkeypatch, cell, status):
    """Exit status 1 is for a cell that was to run and failed."""
    path = tmp_path / "config.py"
    path.write_text("def get_sweep():\n  return [{'seed': i} for i in range(3)]\n")
    ends = ["failed", "complete", "pending"]
    monkeypatch.setattr(sweep, "run_sweep", lambda *_, **__: ends)
    try:
        run_program(monkeypatch, path, workdir="x", cell=cell)
        ended = None
    except SystemExit as error:
        ended = error.code
    assert ended == status


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--preset=tpu", "--preset is 'tpu'; it must be cpu or gpu."),
        ("--jobs=0", "--jobs is '0'; it must be a number from 1 on."),
    ],
)
def test_a_wrong_study_is_refused_before_anything_is_set_up(argument, told):
    done = subprocess.run(
        ["bash", "scripts/reproduce.sh", argument],
        cwd=ROOT,
        env={**os.environ, "PYTHON": "absent"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == f"scripts/reproduce.sh: {told}\n"


def test_durations():
    assert [sweep.duration(s) for s in (1.2, 119, 121, 7100, 7200)] == [
        "1 s",
        "119 s",
        "2 min",
        "118 min",
        "2.0 h",
    ]
