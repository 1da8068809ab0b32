"""Sweeps: cells equal single runs, and interrupted ones go on."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
from paths import ROOT
from tiny_runs import CELLS, numbers, quiet, rows_of, tiny

from bulk_sgd.lab import load
from bulk_sgd.lab.devices import signals
from bulk_sgd.lab.files import identities, metrics, record
from bulk_sgd.lab.report import study, study_numbers
from bulk_sgd.lab.sweep import grid, sweep, workdir
from bulk_sgd.lab.training import run, train


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    statuses = sweep.run_sweep(tiny(), CELLS, folder, say=quiet)
    assert statuses == ["complete"] * 4
    return folder


@pytest.mark.slow
def test_cells_equal_single_runs_to_the_last_bit(swept, tmp_path):
    for index, cell in enumerate(CELLS):
        alone = tmp_path / str(index)
        train.train_and_evaluate(grid.apply(tiny(), cell), alone)
        assert numbers(alone) == numbers(sweep.cell_folder(swept, index))


def test_cells_are_loaded_by_number(swept, tmp_path):
    found = load(swept)
    assert (list(found), found.cells) == ([0, 1, 2, 3], CELLS)
    assert found[2].records == rows_of(sweep.cell_folder(swept, 2))
    own = {"cell": 0, "seed": 0, "optimizer.learning_rate": 0.02}
    assert found.records[0] == own | found[0].records[0]
    assert len(found.records) == sum(len(result.records) for result in found.values())
    assert repr(found) == f"SweepResult('{swept}': 4 of 4 cells have rows)"
    workdir.claim(tmp_path, {"name": "x"}, CELLS, "")  # none has begun
    assert load(tmp_path) == {}


def test_cells_differ(swept):
    for arm in ("prefix", "bulk_sgd"):
        ends = (rows_of(sweep.cell_folder(swept, i), arm)[-1] for i in range(4))
        assert len({row["train_loss"] for row in ends}) == 4


@pytest.mark.slow
def test_lanes_under_vmap_equal_single_runs(swept, tmp_path):
    # The third cell leaves a lane empty. Two lanes compile once for all tests here.
    sweep.run_sweep(tiny(), CELLS[:3], tmp_path, lanes=2, say=quiet)
    for index in range(3):
        folders = (sweep.cell_folder(place, index) for place in (tmp_path, swept))
        # Arms that train in lockstep write their rows in turns.
        order = lambda row: (row["arm"], row["step"])
        ours, theirs = (sorted(rows_of(folder), key=order) for folder in folders)
        for mine, alone in zip(ours, theirs, strict=True):
            # Batched products round in another order; solves end at another residual.
            assert mine["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-4)
            assert mine["step"] == alone["step"]


def test_finished_cells_are_left_alone(swept):
    before = numbers(sweep.cell_folder(swept, 0))
    stamp = (sweep.cell_folder(swept, 0) / metrics.FILE).stat().st_mtime_ns
    said = []
    sweep.run_sweep(tiny(), CELLS, swept, say=said.append)
    assert said == ["4 of 4 cells had ended before."]
    assert (sweep.cell_folder(swept, 0) / metrics.FILE).stat().st_mtime_ns == stamp
    assert numbers(sweep.cell_folder(swept, 0)) == before


def test_one_cell_alone(swept, tmp_path):
    statuses = sweep.run_sweep(tiny(), CELLS, tmp_path, only=2, say=quiet)
    assert statuses == ["pending", "pending", "complete", "pending"]
    assert numbers(sweep.cell_folder(tmp_path, 2)) == numbers(
        sweep.cell_folder(swept, 2)
    )


@pytest.mark.parametrize("lanes", [1, pytest.param(2, marks=pytest.mark.slow)])
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


def test_another_sweep_is_refused(swept):
    with pytest.raises(ValueError, match=r"sweep, with a cell {'seed': 1, .*lacks;"):
        sweep.run_sweep(tiny(), CELLS[:2], swept, say=quiet)


def test_another_base_is_refused(swept, tmp_path):
    before = (swept / workdir.FILE).read_text()
    with pytest.raises(ValueError, match=r"config\.num_steps = 20, which is now 10;"):
        sweep.run_sweep(tiny(num_steps=10), CELLS, swept, only=1, say=quiet)
    assert (swept / workdir.FILE).read_text() == before
    with pytest.raises(ValueError, match=r"this sweep with config\.batch_size = 10, "):
        sweep.run_sweep(tiny(batch_size=12), CELLS, swept, say=quiet)
    # What no result depends on may be set anew, and cells that have ended stay.
    changes = {"progress": True, "optimizer__learning_rate": 0.7}
    statuses = sweep.run_sweep(tiny(**changes), CELLS, swept, say=quiet)
    assert statuses == ["complete"] * 4
    # Sweeps from before bases were kept.
    content = json.loads(before)
    del content["config"]
    (tmp_path / workdir.FILE).write_text(json.dumps(content))
    plain = identities.plain(tiny(num_steps=10))
    assert workdir.ordered(tmp_path, plain, CELLS[::-1]) == CELLS


@pytest.mark.slow
def test_sweep_grows_into_one_that_had_it_all(swept, tmp_path):
    """More steps, arms and cells, whose order does not matter."""
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    shutil.copytree(swept, grown)
    base = tiny(num_steps=25, arms=("sgd", "bulk_sgd", "scales(0, 2)"))
    cells = grid.product(
        grid.values("optimizer.learning_rate", (0.02, 0.05)),
        grid.labelled("all", grid.values("seed", (2, 1, 0))),
    )
    said = []
    go = lambda folder, only: sweep.run_sweep(
        base, cells, folder, only=only, say=said.append
    )
    assert go(grown, None) == ["complete"] * 6
    assert said[0] == "cells to run: 6; programs: 1."
    found = workdir.read(grown)["cells"]
    assert [{**cell, "label": "all"} for cell in CELLS] == found[:4]
    order = lambda row: (row["arm"], row["step"])
    for index in (0, 5):  # a cell that is new, and one that was there
        go(whole, index)
        theirs = numbers(sweep.cell_folder(whole, index))
        mine = numbers(sweep.cell_folder(grown, found.index(cells[index])))
        assert sorted(mine, key=order) == sorted(theirs, key=order)
    assert not list(grown.glob("cells/*/attempts"))
    (axis,), (other,) = map(study.read_study, (grown, whole))
    assert (axis.grown, other.grown) == (True, False)
    assert {cell.status for cell in axis.cells} == {"complete"}
    said.clear()
    go(grown, None)
    assert said == ["6 of 6 cells had ended before."]


def test_doubts_are_told_of_every_cell():
    """The second one shares the programs of the first, and ends at its fork."""
    configs = sweep.configs_of(tiny(), [{}, {"num_steps": 8}])
    said = []
    sweep._check_data(configs, [0, 1], [], said.append)
    (line,) = said
    assert line.startswith("config.num_steps and config.switch.step are both 8: the")


def test_cells_grow_by_what_they_set():
    base = identities.plain(tiny())
    earlier = {"config": base, "added": [{"seed": 5}]}
    earlier["cells"] = [{"num_steps": 20}, {"num_steps": 40}, {"arms": ["sgd"]}]
    cells = [{"arms": ["dom_sgd", "sgd"]}, {"num_steps": 40}, {"num_steps": 60}]
    assert workdir._heirs(earlier, base, cells) == [2, 1, 0, None]
    # The first one leaves its first choice to the other, which has no second.
    earlier = {"config": base, "cells": [{"arms": ["sgd"]}, {"arms": ["dom_sgd"]}]}
    cells = [{"arms": ["sgd", "dom_sgd"]}, {"arms": ["sgd", "bulk_sgd"]}]
    assert workdir._heirs(earlier | {"added": []}, base, cells) == [1, 0]


def test_added_cells_keep_what_they_took_from_the_base(tmp_path):
    """The cells of the call override what changes in the base; that of tuning not."""
    rate = "optimizer.learning_rate"
    cells = grid.values(rate, (0.1, 0.2))
    base = identities.plain(tiny(optimizer__momentum=0.9))
    workdir.claim(tmp_path, base, cells, "")
    workdir.add(tmp_path, [{rate: 0.4}])
    before = (tmp_path / workdir.FILE).read_text()
    cells = [cell | {"optimizer.momentum": 0.9} for cell in cells]
    told = r"config\.optimizer\.momentum = 0\.9, which is now 0\.0 in its cell 2; cho"
    with pytest.raises(ValueError, match=told):
        workdir.claim(tmp_path, identities.plain(tiny()), cells, "")
    assert (tmp_path / workdir.FILE).read_text() == before
    workdir.claim(tmp_path, base | {"num_steps": 30}, cells, "")
    assert workdir.read(tmp_path)["added"] == [{rate: 0.4}]


def test_sweep_without_forks_is_left_as_it_was(tmp_path):
    sweep.run_sweep(tiny(checkpoint__every=0), CELLS[:1], tmp_path, say=quiet)
    before = (tmp_path / workdir.FILE).read_text()
    longer = tiny(checkpoint__every=0, num_steps=30)
    with pytest.raises(ValueError, match="000' holds a finished run without the ch"):
        sweep.run_sweep(longer, CELLS, tmp_path, say=quiet)
    assert (tmp_path / workdir.FILE).read_text() == before


@pytest.mark.slow
def test_killed_five_times_it_ends_with_the_same_numbers(swept, tmp_path):
    """SIGKILL before a row, or before a file gets its name; the same command goes on.

    Each process dies at a write of that number: in a prefix, when a prefix is to be
    shared, in the midst of an arm, and twice in later cells. The last one ends.
    """
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import conftest, interruptions; from tiny_runs import CELLS, tiny\n"
        "from bulk_sgd.lab.sweep import sweep\n"
        "interruptions.die_at(int(sys.argv[1]))\n"
        f"sweep.run_sweep(tiny(), CELLS, {str(tmp_path)!r})"
    )
    for moment, status in zip((6, 8, 13, 20, 25, 0), [-signal.SIGKILL] * 5 + [0]):
        command = [sys.executable, "-c", script, str(moment)]
        assert subprocess.run(command, cwd=ROOT).returncode == status
    assert len(list(tmp_path.glob("cells/000/attempts/*"))) == 2  # twice without a fork
    assert list(tmp_path.glob("prefixes/*.partial"))
    one, other = (
        json.dumps(study_numbers.outcomes(*study.read_study(folder)))
        for folder in (tmp_path, swept)
    )
    assert one == other
    for index in range(4):
        assert record.read(sweep.cell_folder(tmp_path, index))["status"] == "complete"
        assert numbers(sweep.cell_folder(tmp_path, index)) == numbers(
            sweep.cell_folder(swept, index)
        )
