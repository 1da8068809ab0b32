"""Configs: which are shipped, and what each field accepts."""

import importlib

import pytest
from ml_collections import ConfigDict
from paths import ROOT

from bulk_sgd.lab import config

CONFIGS = sorted(
    path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__"
)
NOT_QUICK = {"default", "label_noise", "own"}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_config_is_valid(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "configs")  # as the commands do
    made = importlib.import_module(f"configs.{name}").get_config()
    assert config.validate(made) is None


@pytest.mark.parametrize("name", sorted({*CONFIGS} - NOT_QUICK))
def test_quick_variants_are_small_and_the_others_are_refused(name):
    make = importlib.import_module(f"configs.{name}").get_config
    config.validate(make("quick"))
    assert make("quick").num_steps <= 400 < make().num_steps
    assert make("quick").name == make().name
    with pytest.raises(ValueError, match="variant is 'fast'; it must be empty or 'qu"):
        make("fast")


@pytest.mark.parametrize("name", ["song_mnist5k", "song_sst2", "song_cifar10"])
def test_cheap_variants_keep_the_training_of_the_protocol(name):
    make = importlib.import_module(f"configs.{name}").get_config
    exact, cheap = make(), make("cheap")
    config.validate(cheap)
    assert (cheap.subspace.solver, cheap.subspace.every) == ("streaming", 16)
    for field in ("optimizer", "loss", "batch_size", "num_steps", "arms"):
        assert cheap[field] == exact[field]
    assert cheap.model.width == exact.model.width


def test_quick_variant_of_song_does_not_shrink_the_data_of_others():
    module = importlib.import_module("configs.mnist_mlp")
    assert module.get_config("quick").data == module.get_config().data


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
        ("optimizer.schedule", "exp", "schedule is 'exp'.*constant, cosine, linear,"),
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
        ("subspace.factors", -1, r"subspace\.factors is -1; it must be at least 0"),
        ("subspace.batch_fraction", 0.0, r"batch_fraction is 0\.0; .*from 1e-06 to 1"),
        ("subspace.length", 1, r"subspace\.length is 1; it must be at least 2"),
        ("subspace.calibrate_every", 0, r"calibrate_every is 0"),
        ("subspace.window", 9, r"window is 9; .*at least 10 \(config\.subspace\.rank"),
        ("subspace.update_gain", 0.0, r"update_gain is 0\.0"),
        ("subspace.blocks", "(", r"blocks is '\('; it must be '', 'layer' or a reg"),
        ("subspace.along", "rows", r"along is 'rows'; it must be one of basis, update"),
        ("subspace.drift", 1.5, r"drift is 1\.5; it must be a number from 0 to 1"),
        ("subspace.probe_every", 0, r"probe_every is 0"),
        ("subspace.tol", -1.0, r"tol is -1\.0"),
        ("subspace.max_matvecs", 5, r"max_matvecs is 5; .*at least 10 \(config\.subsp"),
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
        "factors": "streaming",
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
