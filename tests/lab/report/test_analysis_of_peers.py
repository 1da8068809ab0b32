"""Parameters from files of others, in a network that a config names."""

import json
import subprocess
import sys
import types

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import own_things
import pytest
import safetensors.flax
from flax import nnx
from helpers import dense, top
from paths import ROOT

import bulk_sgd
from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.analysis.peers import PeerPoints, fit, read
from bulk_sgd.lab.commands.analyze import _OF_PEERS, _OF_RUNS, _points


@pytest.fixture(scope="module")
def fields(data_file):
    """The config of a network of one's own on 24 examples of 5 numbers."""
    config = config_lib.default()
    config.data.name, config.data.normalization = data_file, "none"
    config.loss.name, config.batch_size = "cross_entropy", 6
    return config


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An NNX module, and the folder of the files that hold it."""
    folder = tmp_path_factory.mktemp("files")
    module = own_things.Stacked((5,), 3, nnx.Rngs(7))
    state = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    named = {
        ".".join(map(str, k)): v
        for k, v in nnx.traversals.flatten_mapping(state).items()
    }
    train_state = {"params": state, "step": np.int32(3), "opt_state": [np.ones(2)]}
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder / "nnx", nnx.state(module, nnx.Param))
        writer.save(folder / "steps" / "3" / "default", train_state)
    np.savez(folder / "numpy.npz", **named)
    safetensors.flax.save_file(named, folder / "flat.safetensors")
    return module, folder


@pytest.mark.slow
def test_files_of_every_format_hold_the_same_network(fields, files):
    module, folder = files
    fields.model.name = "own_things:Stacked"
    places = ["nnx", "steps/3", "numpy.npz", "flat.safetensors"]
    points = PeerPoints(fields, [folder / place for place in places])
    assert len(points) == 4
    found = list(points)
    assert [point.name for point in found] == ["nnx", "3", "numpy", "flat"]
    assert len({point.digest for point in found}) == 1
    params, data = found[0].params, points.objective
    graph, state, rest = nnx.split(module, nnx.Param, ...)

    def loss(state):
        outputs = nnx.merge(graph, state, rest)(data.inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, data.targets)
        return losses.mean()

    assert float(data(params)) == pytest.approx(float(loss(state)), rel=1e-6)
    mine, theirs = (
        top(dense(bulk_sgd.hessian(*pair), pair[1]), 5)[0]
        for pair in ((data, params), (loss, state))
    )
    # Both matrices are of float32 products.
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def test_a_function_of_ones_own_renames_and_transposes(fields, tmp_path):
    fields.model.name = "own_things:pair"
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 5)).astype(np.float16)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "model.safetensors"
        safetensors.numpy.save_file({"weight": weight, "bias": np.zeros(1)}, path)
    paths = [tmp_path / name / "model.safetensors" for name in ("a", "b")]
    first, second = PeerPoints(fields, paths, "own_things:from_torch")
    np.testing.assert_array_equal(first.params["0"], weight.T.astype(np.float32))
    assert first.params["1"].dtype == np.float32
    assert first.name != second.name  # where the files have the same
    assert "/" not in first.name
    with pytest.raises(ValueError, match=r"network own_things:pair do not fit: missi"):
        PeerPoints(fields, paths)


def test_notes_and_code_are_part_of_an_analysis(fields, files):
    _, folder = files
    fields = fields.copy_and_resolve_references()
    fields.model.name = "own_things:Stacked"
    fields.subspace.data, fields.subspace.subset_size = "subset", 12
    points = PeerPoints(fields, [folder / "nnx"])
    told = "The loss is taken over 12 of the 24 training examples, a seeded subset."
    assert points.notes == [told]
    assert points.objective.num_examples == 12
    assert points.record["config"]["fingerprints"]["program"]


def test_what_does_not_fit_is_listed():
    params = {"a": {"w": np.ones((2, 3)), "b": np.ones(3)}, "c": np.ones(1)}
    arrays = {"a/w": np.ones((3, 2)), "a/bias": np.ones(3), "c": np.ones(1)}
    sentence = (
        r"^x do not fit: missing a/b; unexpected a/bias; of another shape a/w \(3, 2\)"
        r", not \(2, 3\)\.$"
    )
    with pytest.raises(ValueError, match=sentence):
        fit(arrays, params, "x")
    with pytest.raises(
        ValueError, match=r"fit: of another shape c \(2,\), not \(1,\)\."
    ):
        fit({"c": np.ones(2)}, {"c": np.ones(1)}, "x")
    many = {f"l{i}": np.ones(1) for i in range(10)}
    with pytest.raises(ValueError, match=r"missing l0, .*, l7 and 2 more\.$"):
        fit({}, many, "x")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("absent.npz", "absent.npz'; it must be a .safetensors or .npz file, or a fol"),
        ("text.npz", "text.npz cannot be read"),
        (".", r"it holds 2 \(.*nnx, .*default\)"),
        ("empty", r"it holds 0 \(none\)"),
    ],
)
def test_what_is_no_checkpoint_is_refused(files, name, sentence):
    _, folder = files
    (folder / "text.npz").write_text("x")
    (folder / "empty").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=sentence):
        read(folder / name)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "--workdir is missing, or --config, --params and --output"),
        ({"params": ["a"]}, "--config is missing"),
        ({"config": 1, "params": ["a"]}, "--output is missing"),
        ({"workdir": "x", "params": ["a"]}, "--workdir is for a run and --params for"),
    ],
)
def test_flags_of_runs_and_of_files_do_not_mix(given, sentence):
    names = (*_OF_RUNS, *_OF_PEERS, "output")
    flags = {name: types.SimpleNamespace(value=given.get(name)) for name in names}
    with pytest.raises(ValueError, match=sentence):
        _points(flags)


@pytest.mark.slow
def test_command(files, data_file, tmp_path):
    _, folder = files
    (tmp_path / "conf.py").write_text(
        "from bulk_sgd.lab.config import default\n"
        "def get_config():\n"
        "    config = default()\n"
        f"    config.data.name, config.data.normalization = {data_file!r}, 'none'\n"
        "    config.model.name, config.batch_size = 'own_things:Stacked', 6\n"
        "    return config\n"
    )
    command = [sys.executable, "-m", "bulk_sgd.analyze", f"--output={tmp_path}/out"]
    command += [f"--config={tmp_path}/conf.py", f"--params={folder}/nnx"]
    small = {"rank": 2, "density_probes": 2, "density_steps": 5, "trace_probes": 2}
    command += [f"--{name}={value}" for name, value in small.items()]
    (tmp_path / "own_things.py").symlink_to(ROOT / "tests" / "own_things.py")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{tmp_path}/out/index.html"
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert [point["name"] for point in found["points"]] == ["nnx"]
    assert jax.tree.leaves(found["points"][0]["rank_profile"]["leaves"])
