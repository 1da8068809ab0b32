"""Config fields, arms and optimizers: what is accepted, and each refusal."""

import importlib

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict
from paths import ROOT

from bulk_sgd.lab import config
from bulk_sgd.lab.from_config import arms, optimizers, solvers
from bulk_sgd.lab.training import experiment
from bulk_sgd.solvers import subspace

CONFIGS = sorted(
    path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__"
)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_config_is_valid(name):
    made = importlib.import_module(f"configs.{name}").get_config()
    assert config.validate(made) is None


@pytest.mark.parametrize("name", sorted({*CONFIGS} - {"default"}))
def test_quick_variants_are_small_and_the_others_are_refused(name):
    make = importlib.import_module(f"configs.{name}").get_config
    config.validate(make("quick"))
    assert make("quick").num_steps <= 400 < make().num_steps
    assert make("quick").name == make().name
    with pytest.raises(ValueError, match="variant is 'fast'; it must be empty or 'qu"):
        make("fast")


def test_quick_variant_of_song_does_not_shrink_the_data_of_others():
    module = importlib.import_module("configs.mnist_mlp")
    assert module.get_config("quick").data == module.get_config().data


def test_muon_takes_no_stacks_of_matrices():
    fields = config.default()
    fields.optimizer.name, fields.model.scan_layers = "muon", True
    with pytest.raises(ValueError, match=r"scan_layers is True; with .*'muon' it must"):
        config.validate(fields)


def test_default_is_locked():
    with pytest.raises(AttributeError):
        config.default().no_such_field = 1


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("seed", -1, r"config\.seed is -1; it must be at least 0"),
        ("batch_size", 0, r"config\.batch_size is 0"),
        ("num_steps", 0, r"config\.num_steps is 0"),
        ("eval_every", 0, r"config\.eval_every is 0"),
        ("microbatch_size", -1, r"config\.microbatch_size is -1"),
        ("optimizer.name", "sgdd", r"config\.optimizer\.name is 'sgdd'.*adam.*sgd"),
        ("optimizer.learning_rate", -0.1, r"learning_rate is -0\.1.*at least 0"),
        ("optimizer.learning_rate", float("nan"), r"learning_rate is nan"),
        ("optimizer.momentum", 1.5, r"momentum is 1\.5.*from 0 to 1"),
        ("optimizer.weight_decay", -1.0, r"weight_decay is -1\.0"),
        ("optimizer.b1", 1.0, r"b1 is 1\.0; it must be a number from 0 below 1"),
        ("optimizer.b2", -0.1, r"b2 is -0\.1"),
        ("optimizer.eps", -1e-8, r"eps is -1e-08"),
        ("optimizer.gamma", -1.0, r"gamma is -1\.0"),
        ("optimizer.diagonal_every", 0, r"diagonal_every is 0"),
        (
            "optimizer.schedule",
            "exp",
            r"schedule is 'exp'.*constant, cosine, linear, s",
        ),
        ("optimizer.warmup_steps", -1, r"warmup_steps is -1"),
        ("optimizer.final_scale", -0.1, r"final_scale is -0\.1"),
        ("optimizer.decay", -0.1, r"decay is -0\.1"),
        ("optimizer.projection", "both", r"projection is 'both'.*gradient, update"),
        ("subspace.rank", 0, r"config\.subspace\.rank is 0"),
        ("subspace.curvature", "fisher", r"curvature is 'fisher'.*gauss_newton"),
        ("subspace.refresh_every", 0, r"refresh_every is 0"),
        ("subspace.data", "all", r"subspace\.data is 'all'.*batch, full, subset"),
        ("subspace.subset_size", 0, r"subset_size is 0"),
        ("subspace.solver", "eigsh", r"solver is 'eigsh'.*lanczos"),
        ("subspace.columns", 3, r"columns is 3; it must divide config\.subspace\.rank"),
        ("subspace.columns", 11, r"columns is 11; it must be from 0 to 10"),
        ("subspace.gain", 0.0, r"gain is 0\.0"),
        ("subspace.length", 1, r"subspace\.length is 1; it must be at least 2"),
        ("subspace.calibrate_every", 0, r"calibrate_every is 0"),
        ("subspace.window", 9, r"window is 9; .*at least 10 \(config\.subspace\.rank"),
        ("subspace.update_gain", 0.0, r"update_gain is 0\.0"),
        ("subspace.blocks", "(", r"blocks is '\('; it must be '', 'layer' or a reg"),
        ("subspace.along", "rows", r"along is 'rows'; it must be one of basis, update"),
        ("subspace.drift", 1.5, r"drift is 1\.5; it must be a number from 0 to 1"),
        ("subspace.probe_every", 0, r"probe_every is 0"),
        ("subspace.tol", -1.0, r"tol is -1\.0"),
        (
            "subspace.max_matvecs",
            5,
            r"max_matvecs is 5; .*at least 10 \(config\.subspace\.rank; 0 is the def",
        ),
        ("subspace.max_matvecs", -1, r"max_matvecs is -1; it must be at least 10"),
        ("subspace.max_basis", 11, r"max_basis is 11; it must be at least 12"),
        ("switch.step", 1001, r"switch\.step is 1001.*0 to 1000 \(config\.num_steps"),
        ("switch.alignment", 1.1, r"alignment is 1\.1"),
        ("switch.decay", -0.1, r"decay is -0\.1"),
        ("switch.measure_every", 0, r"measure_every is 0"),
        ("sharding.data", -1, r"config\.sharding\.data is -1; it must be at least 0"),
        ("sharding.data", 1.5, r"config\.sharding\.data is 1\.5; .* of type int"),
        ("sharding.fsdp", 0, r"sharding\.data and config\.sharding\.fsdp are both 0"),
        ("arms", (), r"config\.arms is empty"),
        ("arms", ("sgd", "sgd"), r"names 'sgd' twice"),
        ("arms", ("bulk",), r"config\.arms has 'bulk'; an arm must be sgd, dom_sgd"),
        ("data.length", -1, r"config\.data\.length is -1; it must be at least 0"),
        ("seed", 1.5, r"config\.seed is 1\.5; it must be of type int"),
    ],
)
def test_wrong_values_are_named(field, value, match):
    wrong = ConfigDict(config.default().to_dict())
    *groups, name = field.split(".")
    holder = wrong
    for group in groups:
        holder = holder[group]
    # The fields of the other solvers are not looked at.
    owners = {
        "columns": "streaming",
        "gain": "streaming",
        "along": "power",
        "length": "krylov_filter",
        "calibrate_every": "krylov_filter",
        "window": "update_pca",
        "update_gain": "streaming_pca",
    }
    wrong.subspace.solver = owners.get(name, "lanczos")
    with holder.ignore_type():
        holder[name] = value
    with pytest.raises(ValueError, match=match):
        config.validate(wrong)


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
    ("changes", "told"),
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
def test_what_does_not_fit_the_network_is_named_by_its_field(changes, told):
    fields = config.default()
    fields.subspace.update(changes)
    with pytest.raises(ValueError, match=told):
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


def test_zero_bounds_are_the_defaults_of_lanczos():
    matrix = jnp.diag(jnp.linspace(1, 2, 400))
    fields = config.default()
    fields.subspace.tol, fields.subspace.warm_start = 0, False

    def spent(bound):
        fields.subspace.max_matvecs = bound
        solver = solvers.build(fields.subspace)
        start = subspace.empty(jnp.ones(400), fields.subspace.rank)
        arguments = (), jnp.ones(400), jax.random.key(0)
        found, _ = solver.solve(lambda v: matrix @ v, start, *arguments)
        return int(found.num_matvecs)

    assert [spent(0), spent(40)] == [150, 40]


def test_unknown_and_missing_fields_are_named():
    wrong = ConfigDict(config.default().to_dict())
    wrong.subspace.rang = 3
    with pytest.raises(ValueError, match=r"config\.subspace\.rang is not a field"):
        config.validate(wrong)
    wrong = ConfigDict(config.default().to_dict())
    del wrong.loss.reduction
    with pytest.raises(ValueError, match=r"config\.loss\.reduction is missing"):
        config.validate(wrong)
    wrong = ConfigDict(config.default().to_dict())
    del wrong.loss
    wrong.loss = "mse"
    with pytest.raises(ValueError, match=r"config\.loss is 'mse'.*group of fields"):
        config.validate(wrong)


@pytest.mark.parametrize(
    ("text", "scales"),
    [
        ("sgd", (1, 1)),
        ("dom_sgd", (1, 0)),
        ("bulk_sgd", (0, 1)),
        ("bulk_path(0.3)", (0.3, 1)),
        ("dom_path(0.3)", (1, 0.3)),
        ("cross_path(0.25)", (0.25, 0.75)),
        ("scales(0.5, 2)", (0.5, 2)),
        (" scales( -1,1e1 ) ", (-1, 10)),
    ],
)
def test_arms_are_points_of_the_plane(text, scales):
    arm = arms.parse(text)
    assert (arm.dominant_scale, arm.bulk_scale) == pytest.approx(scales)
    assert " " not in arm.name


@pytest.mark.parametrize(
    "text",
    ["bulk(0.3)", "bulk_path", "bulk_path(x)", "bulk_path(1,2)", "scales(1)", ""],
)
def test_other_arms_are_refused(text):
    with pytest.raises(ValueError, match=r"config\.arms has"):
        arms.parse(text)


def test_optimizers_are_optax_with_their_fields():
    fields = config.default().optimizer
    fields.learning_rate, fields.momentum = 0.5, 0.9
    grads, params = jnp.ones(2), jnp.zeros(2)

    def second_update(name):
        fields.name = name
        optimizer = optimizers.build(fields, fields.learning_rate)
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(grads, state, params + 1)
        return float(updates[0])

    assert second_update("sgd") == pytest.approx(-0.5 * 1.9)
    fields.nesterov = True
    assert second_update("sgd") == pytest.approx(-0.5 * (1 + 0.9 * 1.9))
    # Adam divides by √v + 1e-8 after a float32 bias correction.
    assert second_update("adam") == pytest.approx(-0.5, rel=1e-4)
    fields.weight_decay = 0.1
    assert second_update("adamw") == pytest.approx(-0.5 * 1.1, rel=1e-4)


@pytest.mark.parametrize(
    ("solver", "changes", "spent"),
    [
        ("power", {}, 3),
        ("power", {"along": "update"}, 1),
        ("lanczos", {"drift": 0.5}, 1),
        ("power", {"drift": 0.5, "probe_every": 2}, 1),
        ("power", {"blocks": "layer"}, 3),
        ("krylov_filter", {"length": 2}, 4),  # the first call, all of four
        ("update_pca", {"window": 3}, 0),
        ("streaming_pca", {}, 0),
    ],
)
def test_solvers_are_built_from_their_fields(solver, changes, spent):
    fields = config.default().subspace
    fields.update(rank=3, solver=solver, **changes)
    built = solvers.build(fields)
    values = jnp.array([5.0, 4.0, 3.0, 1.0])
    known = subspace.empty(values, 3)._replace(
        eigenvalues=values[:3], eigenvectors=jnp.eye(3, 4)
    )
    found, _ = built.solve(
        lambda v: values * v, known, built.init(values, 3), values, jax.random.key(0)
    )
    assert bool(found.converged)
    assert int(found.num_matvecs) == spent


def test_streaming_has_the_gain_of_the_config():
    fields = config.default().subspace
    fields.update(rank=1, solver="streaming", gain=1.0)
    built, ones = solvers.build(fields), jnp.ones(2)
    found, state = subspace.empty(ones, 1), built.init(ones, 1)
    for curvature in (4.0, 2.0):
        matvec = lambda v, curvature=curvature: curvature * v
        found, state = built.solve(matvec, found, state, ones, jax.random.key(0))
    # The last product alone; a smaller gain would give the mean of both.
    assert float(found.eigenvalues[0]) == pytest.approx(2.0)
