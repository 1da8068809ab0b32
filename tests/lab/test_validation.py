"""Fields that must fit each other, the network and the data: each refusal."""

import pytest

from bulk_sgd.lab import config
from bulk_sgd.lab.from_config import solvers
from bulk_sgd.lab.training import experiment


def test_muon_takes_no_stacks_of_matrices():
    fields = config.default()
    fields.optimizer.name, fields.model.scan_layers = "muon", True
    with pytest.raises(ValueError, match=r"scan_layers is True; with .*'muon' it must"):
        config.validate(fields)


def test_fields_of_the_other_solver_are_not_checked():
    fields = config.default()
    fields.subspace.solver = "streaming"
    fields.subspace.rank = fields.subspace.columns = 100
    fields.subspace.max_matvecs = fields.subspace.max_basis = 60
    assert config.validate(fields) is None
    fields.subspace.solver = "lanczos"
    fields.subspace.max_matvecs, fields.subspace.max_basis = 100, 102
    fields.subspace.columns = 3
    assert config.validate(fields) is None


def test_streaming_needs_every_step_and_takes_any_data():
    fields = config.default()
    fields.subspace.solver, fields.subspace.data = "streaming", "subset"
    fields.switch.measure_every = 5  # of no effect without an alignment
    config.validate(fields)
    fields.switch.alignment = 0.5
    with pytest.raises(ValueError, match=r"switch\.measure_every is 5; it must be 1 w"):
        config.validate(fields)
    fields.switch.measure_every, fields.subspace.refresh_every = 1, 20
    with pytest.raises(ValueError, match=r"subspace\.refresh_every is 20; it must be"):
        config.validate(fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"solver": "update_pca", "window": 6},
        {"solver": "lanczos", "max_matvecs": 9, "max_basis": 8},
        {"solver": "power", "max_matvecs": 9, "tol": -1.0},  # has no tolerance
        {"solver": "krylov_filter", "max_matvecs": 9},
        {"solver": "streaming", "columns": 4},
    ],
)
def test_bounds_go_by_the_rank_of_a_block(changes):
    fields = config.default()
    fields.subspace.update(refresh_every=1, blocks="layer", **changes)
    config.validate(fields)
    fields.subspace.blocks = ""
    with pytest.raises(ValueError, match=r"must (be at least 1|divide)"):
        config.validate(fields)


@pytest.mark.parametrize("changes", [{"solver": "krylov_filter"}, {"blocks": "layer"}])
def test_guarded_arms_need_the_eigenvalues_of_the_whole_curvature(changes):
    fields = config.default()
    fields.subspace.update(**changes)
    config.validate(fields)
    fields.arms = ("sgd", "accelerated(0.5, 2)")
    with pytest.raises(ValueError, match=r"config\.arms has 'accelerated\(0\.5,2\)'"):
        config.validate(fields)


@pytest.mark.parametrize("solver", ["power", "streaming"])
def test_blocks_have_no_factors(solver):
    fields = config.default()
    fields.subspace.update(solver=solver, factors=2)
    config.validate(fields)
    assert solvers.num_rows(fields.subspace, 10**6) == 1  # a product
    fields.subspace.blocks = "layer"
    with pytest.raises(ValueError, match=r"factors is 2; with .*blocks it must be 0"):
        config.validate(fields)


@pytest.mark.parametrize(("field", "value"), [("along", "update"), ("max_matvecs", 99)])
def test_power_in_factors_has_no_solve(field, value):
    fields = config.default()
    fields.subspace.update(solver="power", factors=2)
    fields.subspace[field] = value
    with pytest.raises(ValueError, match=rf"{field} is .*subspace\.factors it must be"):
        config.validate(fields)


@pytest.mark.parametrize("solver", solvers.HESSIAN_FREE)
def test_hessian_free_solvers_know_no_curvature(solver):
    fields = config.default()
    fields.subspace.solver = solver
    config.validate(fields)
    fields.subspace.refresh_every = 2
    with pytest.raises(ValueError, match=f"must be 1 with .* = '{solver}', which"):
        config.validate(fields)
    fields.subspace.update(refresh_every=1, drift=0.1)
    with pytest.raises(
        ValueError, match=r"drift is 0.1; it must be 0.0 with .*no eigen"
    ):
        config.validate(fields)
    fields.subspace.update(drift=0.0, keep="rate")
    with pytest.raises(ValueError, match="keep is 'rate'; it must be 'all' with"):
        config.validate(fields)


def test_halves_of_a_subset_need_an_example_each():
    fields = config.default()
    fields.subspace.update(data="subset", subset_size=1)
    config.validate(fields)
    fields.measures.every = fields.eval_every
    with pytest.raises(ValueError, match=r"subset_size is 1; it must be at least 2 \("):
        config.validate(fields)
    fields.subspace.data = "full"  # the field is not looked at
    config.validate(fields)


def test_steps_are_measured_in_rows_and_in_the_coordinates_of_the_parameters():
    fields = config.default()
    fields.measures.step_every = 2 * fields.eval_every
    config.validate(fields)
    fields.optimizer.name, fields.subspace.preconditioned = "adam", True
    with pytest.raises(ValueError, match=r"preconditioned is True; .*step_every i"):
        config.validate(fields)
    fields.measures.step_every += 1
    with pytest.raises(ValueError, match=r"step_every is 101; it must be a multiple"):
        config.validate(fields)


def test_stable_rates_need_a_constant_schedule():
    fields = config.default()
    fields.optimizer.update(schedule="cosine", decay_steps=100)
    config.validate(fields)
    fields.stability.rounds = 2
    with pytest.raises(ValueError, match=r"schedule is 'cosine'.*rounds.*'constant'"):
        config.validate(fields)


def test_full_solves_of_the_krylov_filter_find_one_more():
    fields = config.default()
    fields.subspace.update(solver="krylov_filter", max_matvecs=10)
    with pytest.raises(ValueError, match=r"max_matvecs is 10; it must be at least 11"):
        config.validate(fields)


def test_krylov_filter_serves_one_update_alone():
    fields = config.default()
    fields.subspace.solver = "krylov_filter"
    fields.subspace.blocks = "layer"
    config.validate(fields)
    fields.subspace.refresh_every = 2
    with pytest.raises(ValueError, match=r"every is 2; .* which knows nothing but the"):
        config.validate(fields)
    fields.subspace.refresh_every = 1
    fields.switch.update(alignment=0.9, measure_every=2)
    with pytest.raises(ValueError, match=r"measure_every is 2; it must be 1 with"):
        config.validate(fields)
    fields.switch.measure_every = 1
    fields.subspace.drift = 0.1
    with pytest.raises(ValueError, match=r"drift is 0.1; .* keeps no eigenpairs"):
        config.validate(fields)
    fields.subspace.update(drift=0.0, keep="gap")
    with pytest.raises(ValueError, match=r"keep is 'gap'; .* keeps no eigenpairs"):
        config.validate(fields)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"blocks": "attention"}, r"config\.subspace\.blocks is 'attention', which p"),
        (
            {"blocks": "layer", "rank": 2},
            r"config\.subspace\.rank is 2; .* 3 \(one for",
        ),
        (
            {"blocks": "bias", "rank": 250, "max_matvecs": 50},
            r"config\.subspace\.max_matvecs is 50",
        ),
        (
            {"blocks": "dense_2", "rank": 2011},
            r"config\.subspace: the share of block 'dense_2' in the rank is 2011",
        ),
    ],
)
def test_what_does_not_fit_the_network_is_named_by_its_field(changes, match):
    fields = config.default()
    fields.subspace.update(changes)
    with pytest.raises(ValueError, match=match):
        experiment.Experiment(fields)


@pytest.mark.parametrize("memory", [True, False])
def test_a_subset_larger_than_the_data_is_refused_for_that(memory):
    fields = config.default()
    fields.check_memory = memory
    fields.subspace.update(data="subset", subset_size=10**9)
    with pytest.raises(
        ValueError, match=r"subset_size is 1000000000; it must be from 1 to 5000"
    ):
        experiment.Experiment(fields)
