"""Sweeps: cells equal single runs, interrupted ones go on, failed ones are recorded."""

import contextlib
import glob
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from test_train import rows_of, strip_times, tiny

from bulk_sgd import (
    grid,
    metrics,
    prefixes,
    record,
    run,
    signals,
    steps,
    sweep,
    train,
    trainer,
)
from bulk_sgd.experiment import Experiment
from bulk_sgd.report import study, study_report

ROOT = pathlib.Path(__file__).parents[1]
CELLS = grid.product(
    grid.values("seed", (0, 1)), grid.values("optimizer.learning_rate", (0.02, 0.05))
)


def numbers(folder):
    return strip_times(rows_of(folder))


def quiet(_):
    """Takes lines of progress."""


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep")
    statuses = sweep.run_sweep(tiny(), CELLS, workdir, say=quiet)
    assert statuses == ["complete"] * 4
    return workdir


def test_cells_equal_single_runs_to_the_last_bit(swept, tmp_path):
    for index, cell in enumerate(CELLS):
        alone = tmp_path / str(index)
        train.train_and_evaluate(grid.apply(tiny(), cell), alone)
        assert numbers(alone) == numbers(sweep.cell_folder(swept, index))


def test_cells_differ(swept):
    losses = {rows_of(sweep.cell_folder(swept, i))[-1]["train_loss"] for i in range(4)}
    assert len(losses) == 4


def test_lanes_under_vmap_equal_single_runs(swept, tmp_path):
    sweep.run_sweep(tiny(), CELLS, tmp_path, lanes=3, say=quiet)
    for index in range(4):
        folders = (sweep.cell_folder(place, index) for place in (tmp_path, swept))
        # Arms that train in lockstep write their rows in turns.
        order = lambda row: (row["arm"], row["step"])
        ours, theirs = (sorted(rows_of(folder), key=order) for folder in folders)
        for mine, alone in zip(ours, theirs, strict=True):
            # Batched products round in another order; solves end at another residual.
            assert mine["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-4)
            assert mine["step"] == alone["step"]


def test_lanes_with_subsets_of_their_own_equal_single_runs(tmp_path):
    base = tiny(subspace__data="subset", subspace__subset_size=20, arms=("bulk_sgd",))
    cells = grid.values("seed", (0, 1))
    sweep.run_sweep(base, cells, tmp_path / "lanes", lanes=2, say=quiet)
    sweep.run_sweep(base, cells, tmp_path / "single", say=quiet)
    for index in range(2):
        mine, alone = (
            rows_of(sweep.cell_folder(tmp_path / name, index))[-1]["eigenvalues"]
            for name in ("lanes", "single")
        )
        np.testing.assert_allclose(mine, alone, rtol=1e-3)


def test_finished_cells_are_left_alone(swept):
    before = numbers(sweep.cell_folder(swept, 0))
    stamp = (sweep.cell_folder(swept, 0) / metrics.FILE).stat().st_mtime_ns
    said = []
    sweep.run_sweep(tiny(), CELLS, swept, say=said.append)
    assert said == ["4 of 4 cells had ended before."]
    assert (sweep.cell_folder(swept, 0) / metrics.FILE).stat().st_mtime_ns == stamp
    assert numbers(sweep.cell_folder(swept, 0)) == before


def test_shared_prefix_is_trained_once_and_equal_for_all(tmp_path, monkeypatch):
    trained = []
    save = prefixes.PrefixStore.save
    monkeypatch.setattr(
        prefixes.PrefixStore,
        "save",
        lambda self, experiment, *rest: (
            trained.append(experiment) or save(self, experiment, *rest)
        ),
    )
    # The rank changes the programs, the arms do not; neither changes the prefix.
    cells = grid.chain(
        grid.values("subspace.rank", (2, 3)), grid.values("arms", (("dom_sgd",),))
    )
    sweep.run_sweep(tiny(), cells, tmp_path, say=quiet)
    assert len(trained) == 1
    stories = [
        strip_times(rows_of(sweep.cell_folder(tmp_path, i), "prefix")) for i in range(3)
    ]
    assert stories[0] == stories[1] == stories[2]
    alone = tmp_path / "alone"
    train.train_and_evaluate(grid.apply(tiny(), cells[0]), alone)
    assert numbers(alone) == numbers(sweep.cell_folder(tmp_path, 0))


@pytest.mark.parametrize(
    ("read", "field", "value"),
    [
        ({"measures__sharpness_every": 5}, "subspace.mode", "reverse_over_reverse"),
        ({"measures__sharpness_every": 5}, "subspace.preconditioned", True),
        ({"data__streaming": True}, "subspace.subset_size", 30),
    ],
)
def test_prefixes_whose_rows_differ_have_other_names(read, field, value):
    def names(**changes):
        base = tiny(subspace__data="subset", subspace__subset_size=20, **changes)
        base.optimizer.name = "adam"
        cells = {}, {field: value}, {"subspace.rank": 2}
        return [Experiment(grid.apply(base, cell)).prefix for cell in cells]

    plain, other, rank = names(**read)
    assert plain == rank != other
    assert len(set(names())) == 1


def test_prefix_that_an_alignment_ends_is_shared_whole(tmp_path):
    base = tiny(switch__alignment=0.3, switch__step=15)
    cells = [{"arms": ("sgd",)}, {"arms": ("bulk_sgd",)}]
    for index in range(2):  # separately: the second one reads what the first left
        sweep.run_sweep(base, cells, tmp_path, only=index, say=quiet)
        alone = tmp_path / f"alone{index}"
        result = train.train_and_evaluate(grid.apply(base, cells[index]), alone)
        assert "average alignment" in result["switch"]["reason"]
        assert numbers(alone) == numbers(sweep.cell_folder(tmp_path, index))


def test_one_cell_alone(swept, tmp_path):
    statuses = sweep.run_sweep(tiny(), CELLS, tmp_path, only=2, say=quiet)
    assert statuses == ["pending", "pending", "complete", "pending"]
    assert numbers(sweep.cell_folder(tmp_path, 2)) == numbers(
        sweep.cell_folder(swept, 2)
    )


FATES = [{"seed": 5}, {"optimizer.learning_rate": 1e9}, {"arms": ("sgd",)}]


@pytest.fixture
def seed_five_fails(monkeypatch):
    """Training a run of seed 5 fails, as where the memory runs out."""
    train_jobs = trainer.Trainer.train

    def fail(self, jobs):
        if any(job.experiment.config.seed == 5 for job in jobs):
            raise RuntimeError("out of memory")
        train_jobs(self, jobs)

    monkeypatch.setattr(trainer.Trainer, "train", fail)


@pytest.mark.parametrize("lanes", [1, 2])
def test_failed_and_diverged_cells_are_recorded_and_the_others_go_on(
    tmp_path, seed_five_fails, lanes
):
    said = []
    go = lambda say: sweep.run_sweep(tiny(), FATES, tmp_path, lanes=lanes, say=say)
    statuses = go(said.append)
    assert statuses == ["failed", "diverged", "complete"]
    error = (sweep.cell_folder(tmp_path, 0) / "error.txt").read_text()
    assert "out of memory" in error
    for line, start, end in zip(
        said,
        (
            "cells to run: 3; programs: 1.",
            "cell 0 of 3 failed (",
            "cell 1 of 3 diverged (",
            "cell 2 of 3 complete (",
        ),
        ("", "): seed=5; out of memory; 2 left, about ", "; 1 left", "arms=('sgd',)"),
        strict=True,
    ):
        assert line.startswith(start)
        assert end in line
    assert go(quiet) == statuses  # a failed cell is tried again


def test_sweep_that_came_to_nothing_is_replaced(tmp_path, seed_five_fails):
    assert sweep.run_sweep(tiny(), [{"seed": 5}], tmp_path, say=quiet) == ["failed"]
    assert sweep.run_sweep(tiny(), [{"seed": 6}], tmp_path, say=quiet) == ["complete"]
    with pytest.raises(ValueError, match="holds another sweep"):
        sweep.run_sweep(tiny(), [{"seed": 5}], tmp_path, say=quiet)


@pytest.mark.parametrize("lanes", [1, 2])
def test_interrupted_sweep_has_complete_cells_and_goes_on(
    swept, tmp_path, monkeypatch, lanes
):
    """The signal comes in the third cell, without checkpoints."""
    base = lambda: tiny(checkpoint__every=0)
    begun = []
    begin = run.Run.__enter__

    def counted(self):
        begun.append(self.workdir.name)
        return begin(self)

    monkeypatch.setattr(run.Run, "__enter__", counted)
    monkeypatch.setattr(signals, "wanted", lambda: 15 if len(begun) > 2 else 0)
    with pytest.raises(SystemExit):
        sweep.run_sweep(base(), CELLS, tmp_path, lanes=lanes, say=quiet)
    found = [record.read(sweep.cell_folder(tmp_path, i)) for i in range(4)]
    statuses = [cell and cell["status"] for cell in found]
    # Cells that were not begun have left nothing.
    others = ["interrupted", None] if lanes == 1 else ["interrupted"] * 2
    assert statuses == ["complete"] * 2 + others
    monkeypatch.undo()
    kept = (sweep.cell_folder(tmp_path, 1) / metrics.FILE).stat().st_mtime_ns
    said = []
    sweep.run_sweep(base(), CELLS, tmp_path, lanes=lanes, say=said.append)
    assert said[0] == "2 of 4 cells had ended before."
    assert (sweep.cell_folder(tmp_path, 1) / metrics.FILE).stat().st_mtime_ns == kept
    if lanes == 1:
        for index in range(4):
            folders = (sweep.cell_folder(place, index) for place in (tmp_path, swept))
            mine, alone = map(numbers, folders)
            assert mine == alone


def test_cells_of_a_sweep_compile_once(tmp_path, monkeypatch):
    """One at a time or not, cells of one group are given the same programs."""
    built = []
    programs = sweep.Programs
    monkeypatch.setattr(
        sweep, "Programs", lambda config: built.append(programs(config)) or built[-1]
    )
    traced = []
    inner = steps.Programs._train
    monkeypatch.setattr(
        steps.Programs,
        "_train",
        lambda self, *rest, **options: (
            traced.append(options) or inner(self, *rest, **options)
        ),
    )
    sweep.run_sweep(tiny(), CELLS, tmp_path, say=quiet)
    assert len(built) == 1
    assert traced == [{"projected": False}, {"projected": True}]


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


def test_another_sweep_is_refused(swept):
    with pytest.raises(ValueError, match="holds another sweep"):
        sweep.run_sweep(tiny(), CELLS[:2], swept, say=quiet)


def test_another_base_is_refused(swept, tmp_path):
    before = (swept / sweep.FILE).read_text()
    with pytest.raises(ValueError, match=r"config\.num_steps = 20, which is now 30;"):
        sweep.run_sweep(tiny(num_steps=30), CELLS, swept, only=1, say=quiet)
    assert (swept / sweep.FILE).read_text() == before
    content = json.loads(before)
    sharding = {"data": 1, "fsdp": 2}
    changed = {**content, "config": {**content["config"], "sharding": sharding}}
    assert "config.sharding.data" in sweep._change(content, changed)
    # What no result depends on may be set anew, and cells that have ended stay.
    statuses = sweep.run_sweep(tiny(progress=True), CELLS, swept, say=quiet)
    assert statuses == ["complete"] * 4
    # Sweeps from before bases were kept.
    del content["config"]
    assert sweep._change(content, changed) is None


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
    assert len(sweep._configs(module.get_config(preset), cells)) >= 3
    with pytest.raises(ValueError, match="preset is 'tpu'"):
        module.get_config("tpu")


def test_list_cells_and_refusals():
    config = "--config=configs/ablations/refresh.py"
    listed = subprocess.run(
        command(config, "--list_cells"), cwd=ROOT, capture_output=True, text=True
    )
    first = listed.stdout.splitlines()[0].split(" ", 1)
    assert first[0] == "0"
    assert json.loads(first[1]) == {"subspace.refresh_every": 1, "seed": 0}
    for arguments, match in [
        ((config,), "--workdir is missing"),
        (("--config=configs/mnist_mlp.py", "--list_cells"), "has no get_sweep"),
        ((config, "--workdir=x", "--cell=99"), "cell is 99"),
        ((config, "--list_cells", "--config.batch_size=0"), "config.batch_size is 0"),
        (
            (config, "--list_cells", "--config.subspace.refresh_every=7"),
            "--config.subspace.refresh_every is set on the command line, but the cells",
        ),
    ]:
        result = subprocess.run(
            command(*arguments), cwd=ROOT, capture_output=True, text=True
        )
        assert result.returncode == 2
        assert match in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


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
        sweep._call(get_sweep, [], __file__)


class Values(types.SimpleNamespace):
    """What the flags of the program say."""

    def __getitem__(self, name):
        return getattr(self, name)


@pytest.mark.parametrize(("cell", "status"), [(None, 1), (0, 1), (1, None), (2, None)])
def test_array_job_answers_for_its_own_cell(tmp_path, monkeypatch, cell, status):
    """Exit status 1 is for a cell that was to run and failed."""
    path = tmp_path / "config.py"
    path.write_text("def get_sweep():\n  return [{'seed': i} for i in range(3)]\n")
    flag = types.SimpleNamespace(
        get_config_filename=lambda _: str(path), get_override_values=lambda _: {}
    )
    monkeypatch.setattr(sweep, "config_flags", flag)
    ends = ["failed", "complete", "pending"]
    monkeypatch.setattr(sweep, "run_sweep", lambda *_, **__: ends)
    values = Values(config=tiny(), workdir="x", prefixes=None, lanes=1)
    values.cell, values.list_cells = cell, False
    try:
        sweep._run(values)
        ended = None
    except SystemExit as error:
        ended = error.code
    assert ended == status


def test_study_of_an_unknown_preset_is_refused_before_anything_is_set_up():
    done = subprocess.run(
        ["bash", "scripts/reproduce.sh", "--preset=tpu"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": "absent"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "scripts/reproduce.sh: --preset is 'tpu'; it must be cpu or gpu.\n"
    )


def test_durations():
    assert [sweep._duration(s) for s in (1.2, 119, 121, 7100, 7200)] == [
        "1 s",
        "119 s",
        "2 min",
        "118 min",
        "2.0 h",
    ]


@pytest.mark.slow
def test_killed_five_times_it_ends_with_the_same_numbers(swept, tmp_path):
    """SIGKILL at random moments; the same command goes on."""
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import conftest, test_sweep, test_train; from bulk_sgd import sweep\n"
        f"sweep.run_sweep(test_train.tiny(), test_sweep.CELLS, {str(tmp_path)!r})"
    )
    moments, killed = random.Random(0), 0

    def num_rows():
        count = 0
        # The module passes over folders that vanish meanwhile; pathlib raises.
        for name in glob.glob(
            "cells/**/metrics.jsonl", root_dir=tmp_path, recursive=True
        ):
            with contextlib.suppress(FileNotFoundError):  # moved to attempts just now
                count += (tmp_path / name).read_text().count("\n")
        return count

    for attempt in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, start_new_session=True
        )
        wanted = num_rows() + moments.randint(1, 4)
        while attempt < 5 and process.poll() is None and num_rows() < wanted:
            time.sleep(0.01)
        if attempt < 5:
            time.sleep(moments.uniform(0, 0.1))
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed == 5
    assert list(tmp_path.glob("cells/*/attempts/*"))  # in the middle of a cell
    tables = [
        study_report._numbers(study.read_study(folder)) for folder in (tmp_path, swept)
    ]
    one, other = (json.dumps(list(table.values())) for table in tables)
    assert one == other
    for index in range(4):
        assert record.read(sweep.cell_folder(tmp_path, index))["status"] == "complete"
        assert numbers(sweep.cell_folder(tmp_path, index)) == numbers(
            sweep.cell_folder(swept, index)
        )
