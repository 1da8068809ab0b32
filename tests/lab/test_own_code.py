"""Networks, losses, data, optimizers, solvers and measurements by their import path."""

import importlib
import subprocess
import sys

import equinox as eqx
import grain
import jax
import numpy as np
import own_things
import pytest
from flax import nnx
from ml_collections import ConfigDict
from paths import ROOT
from tiny_runs import numbers, rows_of, tiny

from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab import load, plugins
from bulk_sgd.lab.analysis.checkpoints import RunPoints
from bulk_sgd.lab.data import sources
from bulk_sgd.lab.files import record
from bulk_sgd.lab.models.build import build_model
from bulk_sgd.lab.training import train
from bulk_sgd.lab.training.experiment import Experiment

INPUTS = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)


def built(name, seed=0, **options):
    fields = ConfigDict({"name": f"own_things:{name}", "options": options})
    return build_model(fields, (3,), 2, seed)


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("Stacked", {"layers/0/kernel", "layers/2/bias"}),
        ("Linen", {"Dense_0/kernel", "Dense_1/bias"}),
        ("equinox", {"layers/0/weight", "layers/1/bias"}),
        ("pair", {"0", "1"}),
    ],
)
def test_networks_of_every_kind(name, paths):
    model_fn, params = built(name)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    text = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    assert paths <= {text(path) for path, _ in leaves}
    assert all(x.dtype == np.float32 for _, x in leaves)
    # Nothing but dicts with strings, whatever the network holds its parameters in.
    assert all(isinstance(k.key, str) for path, _ in leaves for k in path)
    outputs = jax.jit(model_fn)(params, INPUTS)
    other, changed = built(name, seed=1)
    assert other == model_fn
    assert not np.allclose(model_fn(changed, INPUTS), outputs)
    np.testing.assert_allclose(outputs, by_hand(name, params), rtol=1e-6)


def by_hand(name, params):
    """The outputs of the network's own call."""
    if name == "Stacked":
        return own_things.Stacked((3,), 2, nnx.Rngs(0))(INPUTS)
    if name == "Linen":
        return own_things.Linen(2).apply({"params": params}, INPUTS)
    if name == "pair":
        return INPUTS @ params["0"] + params["1"]
    model = own_things.equinox((3,), 2, jax.random.key(0))
    layers = [params["layers"][i] for i in "01"]
    place = lambda m: [x for layer in m.layers for x in (layer.weight, layer.bias)]
    leaves = [x for layer in layers for x in (layer["weight"], layer["bias"])]
    return jax.vmap(eqx.tree_at(place, model, leaves))(INPUTS)


def test_options_reach_the_network():
    _, params = built("Stacked", sizes=(7,))
    assert params["layers"]["0"]["kernel"].shape == (3, 7)
    assert built("Stacked", sizes=(7,))[0] != built("Stacked")[0]


OWN = {
    "model": ("mlp", {"width": 6}),
    "loss": ("squared_error", {"reduction": "sum"}),
    "data": ("images", {}),
    "optimizer": ("sgd", {"momentum": 0.3}),
    "subspace": ("solver", {"tol": 1e-5, "max_matvecs": 200}),
}


def own(**changes):
    """A tiny run in which everything comes from `own_things`."""
    config = tiny(**changes)
    for group, (name, options) in OWN.items():
        field = "solver" if group == "subspace" else "name"
        config[group][field] = f"own_things:{name}"
        config[group].options = ConfigDict(options)
    names = "train_loss", "in_subspace", "moved"
    config.measures.own = tuple(f"own_things:{name}" for name in names)
    return config


def test_own_things_are_entries_like_those_of_the_registries(tmp_path, monkeypatch):
    """The same network, loss, … by import path give the same rows, bit for bit."""
    train.train_and_evaluate(tiny(optimizer__momentum=0.3), tmp_path / "named")
    result = train.train_and_evaluate(own(), tmp_path / "own")
    rows = numbers(tmp_path / "own")
    for row in rows:
        assert row.pop("own/train_loss") == pytest.approx(row["train_loss"], rel=1e-6)
        chi, known = row.pop("own/in_subspace/chi"), row["alignment_gradient"]
        assert chi == (known and pytest.approx(known, abs=1e-6))
        # Without a subspace, which it takes, a function is measured no more than they.
        assert row.pop("own/in_subspace/sizes") == (known and [1, 1, 1])
        assert row.pop("own/moved/step") == row["step"]
        assert (row.pop("own/moved/length") > 0) == (row["step"] > 0)
    assert rows == numbers(tmp_path / "named")
    *_, numbers_, curve = load(tmp_path / "own").axes("own")
    assert len(curve.get_lines()) > len(numbers_.get_lines())  # one per entry
    assert curve.get_ylabel() == "in_subspace/sizes"
    assert result["config"]["model"]["options"] == {"width": 6}
    assert "def squared_error" in result["sources"]["own_things"]
    # An analysis takes the code from the record.
    monkeypatch.setitem(sys.modules, "own_things", None)
    (point,) = RunPoints(tmp_path / "own")
    assert point.name == "fork@8"


def test_sam_of_ones_own_gets_the_loss_of_the_batch(tmp_path):
    named = tiny(optimizer__name="sam", num_steps=10, arms=("sgd",))
    mine = tiny(optimizer__name="own_things:sam", num_steps=10, arms=("sgd",))
    for config in (named, mine):
        train.train_and_evaluate(config, tmp_path / config.optimizer.name[:3])
    assert numbers(tmp_path / "own") == numbers(tmp_path / "sam")


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("model.name", "absent:x", "there is no module absent; it must be a file besi"),
        ("model.name", "own_things:x", r"own_things.py has no x\."),
        ("model.name", "own_things:number", "TypeError.\n.*is of type int; it must be"),
        (
            "model.name",
            "own_things:wants",
            "needs more; a run gives it input_shape, nu",
        ),
        ("model.name", "own_things:with_dropout", "network holds Rng.*; it must do wi"),
        ("model.name", "own_things:without_any", "the network has no parameters"),
        ("model.name", "own_things:with_averages", "network holds batch_stats beside"),
        ("model.options", {"depth": 3}, r"config.model.options has depth, which own_t"),
        ("model.options", {"width": np.ones(2)}, "holds what its record cannot"),
        (
            "loss.name",
            "own_things:total",
            "which is no mean over examples: (?!.*weigh)",
        ),
        ("loss.name", "own_things:broken", "'own_things:broken', which fails with"),
        ("loss.name", "hinge", "cross_entropy, mse, or the import path of your own"),
        ("optimizer.name", "own_things:number", "'own_things:number', which returns"),
        ("subspace.solver", "own_things:number", "is 1; it must be a bulk_sgd.Solver"),
        ("data.name", "own_things:number", "fails with TypeError"),
        ("measures.own", ("norm",), "config.measures.own is 'norm'; it must be the im"),
        (
            "measures.own",
            ("own_things:train_loss",) * 2,
            "must name each function once",
        ),
        (
            "measures.own",
            ("own_things:wants",),
            r"needs more; a run gives it params, start, step, subspace, objective, fi",
        ),
        *[
            (
                "measures.own",
                (f"own_things:returns_{kind}",),
                rf"which returned a {kind}{place}; it must return a number, an arr",
            )
            for kind, place in [("str", ""), ("NoneType", ""), ("dict", " at 'a'")]
        ],
        (
            "measures.own",
            ("own_things:branches",),
            r"TracerBoolC.* JAX traces it: use jnp\.wh.*branches\n.*> 1:[\s~^]*(-|$)",
        ),
        ("measures.own", ("own_things:in_numpy",), "use jnp in place of np"),
        (
            "measures.own",
            ("own_things:misspells",),
            r"KeyError\. .*params are dense_0/bias, dense_0/kernel, dense_1/.*in missp",
        ),
        ("measures.own", (len,), "config.measures.own has <built-in .* must be import"),
    ],
)
def test_errors_of_own_code_are_one_sentence(field, value, sentence):
    config = own(subspace__subset_size=30)
    group, _, name = field.rpartition(".")
    holder = config[group]
    if field != "model.options" and name != "own":
        holder.options = ConfigDict()
    holder[name] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=f"(?s){sentence}"):
        Experiment(config)


def test_traceback_is_that_of_the_users_code():
    config = tiny(loss__name="own_things:broken")
    with pytest.raises(plugins.PluginError) as caught:
        Experiment(config)
    first, head, place, *_ = str(caught.value).splitlines()
    assert first.startswith("config.loss.name is 'own_things:broken', which fails with")
    assert head.startswith("Traceback")
    assert "own_things.py" in place
    assert str(caught.value).count("broken") == 2
    assert str(caught.value).count("  File ") == 1  # no frames of JAX


def test_traceback_has_frames_of_other_files_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "derived.py").write_text("from based import both as net")
    (tmp_path / "based.py").write_text(
        "def both():\n    return lambda key: 1.0, apply\n"
        "def apply(params, x):\n    return x @ x.absent\n"
    )
    with pytest.raises(plugins.PluginError, match=r"(?s)based\.py.*x @ x\.absent"):
        Experiment(tiny(model__name="derived:net"))


MODULE = """
# {comment}
def get_config():
    return {comment!r}

def double(params):
    return {factor} * sum(x.sum() for x in params["dense_1"].values())
"""


def test_changed_code_is_refused_and_a_comment_is_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def go(comment, factor):
        (tmp_path / "measured.py").write_text(MODULE.format(**locals()))
        sys.modules.pop("measured", None)
        importlib.invalidate_caches()
        config = tiny(num_steps=10, arms=("sgd",), measures__own=("measured:double",))
        return train.train_and_evaluate(config, tmp_path / "run")

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert go("once", 2) == go("twice", 2)
    wanted = "another program: double of module measured had other code; choose"
    with pytest.raises(ValueError, match=wanted):
        go("twice", 3)


def data(**fields):
    config = config_lib.default().data
    config.normalization = "none"
    config.update(fields)
    return config


def test_data_of_ones_own(monkeypatch):
    labels = np.arange(5) % 2
    pairs = grain.MapDataset.range(5).map(lambda i: (INPUTS[i], int(labels[i])))
    targets = INPUTS[:, :2].astype(np.float64)
    arrays = {f"x_{part}": INPUTS for part in ("train", "test")}
    for part in ("train", "test"):
        arrays[f"y_{part}"] = targets
    monkeypatch.setattr(own_things, "images", lambda: {"train": pairs, "test": pairs})
    found = sources.load(data(name="own_things:images", num_train=3))
    np.testing.assert_array_equal(found.train_inputs, INPUTS[:3])
    np.testing.assert_array_equal(found.test_targets, labels)
    assert (found.num_classes, found.name) == (2, "own_things:images")
    monkeypatch.setattr(own_things, "images", lambda: arrays)
    found = sources.load(data(name="own_things:images"))
    np.testing.assert_array_equal(found.train_targets, targets.astype(np.float32))
    assert found.num_classes == 2
    monkeypatch.setattr(own_things, "images", lambda: found)
    assert sources.find(data(name="own_things:images")).train_inputs is not None


@pytest.mark.slow
def test_example_runs_from_the_command_line(tmp_path):
    words = ["num_steps=20", "switch.step=10", "eval_every=10", "arms=sgd,scales(0,1)"]
    command = ["main", "--config=configs/own.py", f"--workdir={tmp_path}"]
    command += [f"--config.{word}" for word in (*words, "model.options.width=8")]
    for name, *flags in (command, ["report", f"--workdir={tmp_path}"]):
        done = subprocess.run(
            [sys.executable, "-m", f"bulk_sgd.{name}", *flags],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert rows_of(tmp_path, "scales(0,1)")[-1]["own/weight_norm"] > 0
    assert "class Net" in record.read(tmp_path)["sources"]["own"]
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "weight_norm" in page
    assert (tmp_path / "report" / "own.png").exists()
