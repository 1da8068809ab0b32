"""What the cells of a sweep share, and what one that fails leaves to the others."""

import numpy as np
import pytest
from tiny_runs import CELLS, numbers, quiet, rows_of, strip_times, tiny

from bulk_sgd.lab.sweep import grid, sweep
from bulk_sgd.lab.training import loop, prefixes, steps, train
from bulk_sgd.lab.training.experiment import prefix_of, program_of


def spy(monkeypatch, owner, method):
    """The arguments of the calls of a method, which does its work as before."""
    calls, inner = [], getattr(owner, method)

    def call(self, *arguments, **options):
        calls.append((arguments, options))
        return inner(self, *arguments, **options)

    monkeypatch.setattr(owner, method, call)
    return calls


@pytest.mark.slow
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


def test_shared_prefix_is_trained_once_and_equal_for_all(tmp_path, monkeypatch):
    trained = spy(monkeypatch, prefixes.PrefixStore, "save")
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
        return [prefix_of(grid.apply(base, cell)) for cell in cells]

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


@pytest.mark.slow
def test_arms_without_a_subspace_have_lanes_of_one_program(tmp_path):
    # How many products a Lanczos solve takes depends on rounding, so on the program.
    config = tiny(
        measures__sgd_subspace=False,
        subspace__solver="streaming",
        subspace__data="batch",
    )
    sweep.run_sweep(config, CELLS[:1], tmp_path / "lanes", lanes=2, say=quiet)
    sweep.run_sweep(config, CELLS[:1], tmp_path / "alone", say=quiet)
    for arm in ("sgd", "bulk_sgd"):
        one, other = (
            rows_of(sweep.cell_folder(tmp_path / name, 0), arm)[-1]
            for name in ("lanes", "alone")
        )
        assert one["matvecs"] == other["matvecs"]
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)


FATES = [{"seed": 5}, {"optimizer.learning_rate": 1e9}, {"arms": ("sgd",)}]


@pytest.fixture
def seed_five_fails(monkeypatch):
    """Training a run of seed 5 fails, as where the memory runs out."""
    train_stretches = loop.Trainer.train

    def fail(self, stretches):
        if any(stretch.experiment.config.seed == 5 for stretch in stretches):
            raise RuntimeError("out of memory")
        train_stretches(self, stretches)

    monkeypatch.setattr(loop.Trainer, "train", fail)


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
            "cell 0 failed, 1 of 3 (",
            "cell 1 diverged, 2 of 3 (",
            "cell 2 complete, 3 of 3 (",
        ),
        ("", "): seed=5; out of memory; 2 left, about ", "; 1 left", "arms=('sgd',)"),
        strict=True,
    ):
        assert line.startswith(start)
        assert end in line
    again = []
    assert go(again.append) == statuses
    # The failed cell alone is tried again.
    assert again[:2] == [
        "2 of 3 cells had ended before.",
        "cells to run: 1; programs: 1.",
    ]


def test_sweep_that_came_to_nothing_is_replaced(tmp_path, seed_five_fails):
    assert sweep.run_sweep(tiny(), [{"seed": 5}], tmp_path, say=quiet) == ["failed"]
    assert sweep.run_sweep(tiny(), [{"seed": 6}], tmp_path, say=quiet) == ["complete"]
    with pytest.raises(ValueError, match="holds another sweep"):
        sweep.run_sweep(tiny(), [{"seed": 5}], tmp_path, say=quiet)


@pytest.mark.slow
def test_cells_of_a_sweep_compile_once(tmp_path, monkeypatch, shared_programs):
    """One at a time or not, cells of one group are given the same programs."""
    shared_programs.clear()
    traced = spy(monkeypatch, steps.Programs, "_train")
    sweep.run_sweep(tiny(), CELLS, tmp_path, say=quiet)
    options = [options for _, options in traced]
    assert options == [{"projected": False}, {"projected": True}]
    # The momentum, unlike the rate, is a constant of the programs.
    assert program_of(tiny(optimizer__momentum=0.5)) != program_of(tiny())
