"""What a sweep is said to cost, and what it then costs."""

import pytest
from tiny_runs import quiet, tiny

from bulk_sgd.lab.files import record
from bulk_sgd.lab.sweep import estimate, sweep
from bulk_sgd.lab.sweep.workdir import cell_folder
from bulk_sgd.lab.training.experiment import Experiment

# The first three share a prefix, the first two their programs.
CELLS = [{"arms": ("sgd", "dom_sgd")}, {"arms": ("bulk_sgd",)}, {"subspace.rank": 2}]


@pytest.mark.slow
def test_steps_and_matvecs_are_those_of_the_sweep(tmp_path):
    base = tiny(
        subspace__solver="streaming", subspace__data="batch", subspace__columns=0,
        subspace__every=5, subspace__gain=0.4, num_steps=30,
    )  # fmt: skip
    first, second = costs = estimate.estimate(base, CELLS)
    assert (first.cells, second.cells) == (2, 1)
    # None in the prefix. Of the 22 steps of an arm 6 act, then one in 5.
    assert (first.steps, first.matvecs) == (8 + 3 * 22, 3 * 10 * 3)
    assert (second.steps, second.matvecs) == (2 * 22, 2 * 10 * 2)
    assert first.memory > second.memory > 10_000  # of a larger basis
    assert min(cost.seconds for cost in costs) > 0
    sweep.run_sweep(base, CELLS, tmp_path, say=quiet)
    found = [record.read(cell_folder(tmp_path, index)) for index in range(3)]
    matvecs = [arm["matvecs"] for run in found for arm in run["arms"].values()]
    assert sum(matvecs) == first.matvecs + second.matvecs
    assert estimate.estimate(base, CELLS, tmp_path) == []
    # Ten more steps of four arms, and another arm from the fork.
    base.num_steps = 40
    more = [{"arms": ("sgd", "dom_sgd", "scales(1, 2)")}, *CELLS[1:]]
    grown, other = estimate.estimate(base, more, tmp_path)
    assert (grown.steps, other.steps) == (3 * 10 + 32, 2 * 10)
    assert grown.matvecs == (3 * 2 + 12) * 3
    assert estimate.table([]).splitlines()[-1].split()[:3] == ["total", "0", "0"]


def test_rows_and_refreshes_that_a_cell_asks_for():
    config = tiny(
        measures__every=5, measures__sharpness_every=10, measures__step_every=15,
        switch__alignment=0.5, switch__measure_every=2, stability__rounds=3,
        arms=("sgd",), num_steps=38, measures__own=("own_things:moved",),
    )  # fmt: skip
    prefix, arm, *trials = estimate._stretches(config, None, set())
    rows = {"evaluate": 3, "own": 3, "sharpness": 0, "measure": 1, "along_step": 0}
    assert prefix == ([(1, 0, 0), (2, 8, 4)], rows)
    rows = {"evaluate": 7, "own": 7, "sharpness": 4, "measure": 6, "along_step": 2}
    assert arm == ([(1, 0, 0), (1, 30, 30)], rows)
    config.measures.last_sharpness = False
    assert [*estimate._stretches(config, None, set())][1][1]["sharpness"] == 3
    assert trials == 5 * [([(1, 0, 0), (1, 200, 200)], {"evaluate": 1})]
    config.measures.sgd_subspace = False
    _, arm, *trials = estimate._stretches(config, None, set())
    assert arm == ([(0, 30, 0)], rows | {"sharpness": 3, "measure": 0, "along_step": 0})
    assert trials == 5 * [([(0, 200, 0)], {"evaluate": 1})]
    known = set()
    assert len([*estimate._stretches(config, None, known)]) == 7
    assert len([*estimate._stretches(config, None, known)]) == 6  # the prefix is there


def test_states_that_a_cell_writes():
    config = tiny(checkpoint__every=5, arms=("sgd", "dom_sgd"), num_steps=20)
    states = lambda *arguments: estimate._num_states(config, *arguments)
    # In 8 steps 1 and in each 12 steps 2, at the fork, and before both ends.
    assert states(None, True) == 1 + 2 * 2 + 1 + 2
    assert states(None, False) == 6
    assert states({"sgd": 15}, True) == 1 + 2 + 2  # an arm grows, and one is new
    config.checkpoint.every = 0
    assert states(None, False) == 0


def test_arms_of_a_cell_that_grows_begin_where_their_states_are(tmp_path):
    arm = lambda step, status="complete": {"last_step": step, "status": status}
    arms = {"sgd": arm(20), "dom_sgd": arm(20), "bulk_sgd": arm(12, "diverged")}
    found = {"status": "complete", "switch": {"step": 8}, "arms": arms}
    record.write(tmp_path, found)
    (tmp_path / record.CHECKPOINTS / "ends/sgd").mkdir(parents=True)
    ends = {"sgd": 20, "dom_sgd": 8, "bulk_sgd": 40}
    assert estimate._ends(tmp_path, 40) == ends
    names = ("sgd", "dom_sgd", "bulk_sgd", "scales(1, 2)")
    left = estimate._arms(tiny(arms=names, num_steps=40), ends)
    begin = [("sgd", 20, False), ("dom_sgd", 8, False), ("scales(1,2)", 8, True)]
    assert left == begin
    assert estimate._ends(tmp_path, 20) == ends | {"dom_sgd": 20, "bulk_sgd": 20}


def test_streaming_is_eager_first():
    space = tiny(subspace__solver="streaming", subspace__every=4).subspace
    space.gain = 0.4
    assert estimate._parts(space, 0, 23, 1) == [(1, 18, 18), (4, 5, 2)]
    assert estimate._parts(space, 8, 6, 1) == [(1, 6, 6), (4, 0, 0)]
    assert estimate._parts(space, 19, 5, 1) == [(1, 0, 0), (4, 5, 1)]  # at call 22
    assert estimate._parts(space, 0, 8, 0) == [(0, 8, 0)]


@pytest.mark.parametrize("program", ["along_step", "own"])
def test_further_columns_of_a_row_take_their_time(program):
    own = {"measures__step_every": 5, "measures__own": ("own_things:moved",)}
    experiment = Experiment(tiny(**own))
    assert estimate._measuring(experiment, experiment.start(), {program: 2}) > 0
