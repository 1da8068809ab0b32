"""Runs and prefixes are never silently of other data or other code than they name."""

import ast
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import quiet, tiny

from bulk_sgd.lab.data import npz
from bulk_sgd.lab.data.dataset import Dataset
from bulk_sgd.lab.data.rows import LazyRows
from bulk_sgd.lab.devices import signals
from bulk_sgd.lab.files import identities, record
from bulk_sgd.lab.from_config import losses
from bulk_sgd.lab.models import layers
from bulk_sgd.lab.sweep import sweep
from bulk_sgd.lab.training import fingerprints, train
from bulk_sgd.lab.training.experiment import Experiment

CONFIG = {"eval_every": 2, "checkpoint__every": 2, "arms": ("sgd",)}


def config(**changes):
    return tiny(data__name="data.npz", **CONFIG | changes)


def write_data(flip=0):
    """A part of the embedded data, with one pixel of the last image in use changed."""
    with np.load(npz._MNIST) as file:
        arrays = {name: file[name][:100] for name in file.files}
    arrays["x_train"][59, 14, 14] ^= flip
    np.savez("data.npz", **arrays)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of data and of a run that was interrupted in its arm."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_data()
        asked = iter(range(1_000))
        patch.setattr(signals, "wanted", lambda: signal.SIGTERM * (next(asked) == 7))
        with pytest.raises(SystemExit):
            train.train_and_evaluate(config(), "run")
    return folder


@pytest.fixture
def workdir(stopped, tmp_path, monkeypatch):
    """A copy of that run, with its data in the current folder."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


@pytest.fixture(autouse=True, scope="module")
def shared_programs():
    """None are: tests edit the code that a program is made of."""


def edit(what, patch):
    """Changes the data in place, or the code."""
    if what == "data":
        write_data(flip=255)
    elif what == "network":
        patch.setitem(layers.ACTIVATIONS, "tanh", lambda x: jnp.tanh(1.01 * x))
    elif what == "loss":
        reduce = losses._REDUCTIONS["sum"]
        patch.setitem(losses._REDUCTIONS, "sum", lambda squares: 2 * reduce(squares))


OTHERS = {"data": "other data than", "network": "another program, whose network"}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("state", ["interrupted", "complete", "lost"])
def test_run_of_others_is_refused(workdir, monkeypatch, state, what):
    """Also where only the checkpoints are left to tell."""
    path = workdir / record.FILE
    path.write_text(path.read_text().replace("interrupted", state))
    if state == "lost":
        path.unlink()
    before = sorted(workdir.rglob("*"))
    edit(what, monkeypatch)
    holds = "checkpoints" if state == "lost" else "a run"
    match = f"holds {holds} of {OTHERS[what]}.*; choose another workdir"
    with pytest.raises(ValueError, match=match):
        train.train_and_evaluate(config(), workdir)
    assert sorted(workdir.rglob("*")) == before


def test_run_from_before_goes_on(workdir, capsys):
    """Early versions recorded no fingerprints, which is said once."""
    for path in [workdir / record.FILE, *workdir.glob("**/story/metadata")]:
        path.write_text(path.read_text().replace("fingerprints", "unknown"))
    train.train_and_evaluate(config(), workdir)
    train.train_and_evaluate(config(), workdir)
    told = capsys.readouterr().err
    assert told.count("was recorded without fingerprints of its data and program") == 1
    assert "going on from sgd" in told
    assert record.read(workdir)["fingerprints"]["data"]


def test_program_of_other_versions_cannot_be_compared():
    now = {"data": "a", "program": "b", "tracer": "jax 2"}
    compare = identities.other_fingerprints
    assert compare(now, now) == compare(now | {"tracer": "jax 1"}, now) == ("", "")
    other, doubt = compare({"data": "a", "program": "c", "tracer": "jax 1"}, now)
    assert not other
    assert "with jax 1, not jax 2, so that its program cannot be" in doubt
    assert "data" in compare({"data": "b", "program": "c", "tracer": "jax 1"}, now)[0]


def test_functions_that_came_and_went_are_told_as_such():
    earlier = {"data": "a", "program": "b", "tracer": "jax"}
    earlier["code"] = {"mine": {"": "1", "loss": "2", "old": "3"}, "nets": {"a": "4"}}
    now = earlier | {"program": "c"}
    now["code"] = {"mine": {"": "0", "loss": "9", "b": "5", "a": "6"}, "nets": {}}
    told, _ = identities.other_fingerprints(earlier, now)
    assert told == (
        "another program: the top level, loss of module mine had other code, a, b of "
        "module mine are new, old of module mine is gone, a of module nets is gone"
    )


@pytest.mark.slow
def test_prefix_of_others_is_refused(workdir, monkeypatch, capsys):
    folder = workdir / "prefixes"

    def go(name):
        cells, place = [{"seed": 0}], workdir / name
        sweep.run_sweep(config(), cells, place, prefixes=folder, say=quiet)
        return record.read(sweep.cell_folder(place, 0))["status"]

    assert go("first") == "complete"
    for what, of in OTHERS.items():
        with monkeypatch.context() as patch:
            edit(what, patch)
            with pytest.raises(ValueError, match=f"prefix '.*npz' is of {of}.*folder"):
                go(what)
        write_data()
    forget(folder)
    assert not capsys.readouterr().err
    assert go("from before") == "complete"
    assert capsys.readouterr().err.count("was recorded without fingerprints") == 1
    # What its fingerprints do not tell, its loss does.
    edit("network", monkeypatch)
    assert go("of others") == "failed"
    error = sweep.cell_folder(workdir / "of others", 0) / "error.txt"
    assert "ends with a training loss of 0." in error.read_text()


def forget(folder):
    """Leaves prefixes as early versions wrote them."""
    for path in folder.iterdir():
        with np.load(path) as file:
            arrays = dict(file)
        story = json.loads(str(arrays.pop("story")))
        del story["fingerprints"]
        np.savez(path, **arrays, story=json.dumps(story))


@pytest.mark.slow
@pytest.mark.usefixtures("workdir")
def test_edits_are_seen_and_nothing_else(monkeypatch):
    def prints(**changes):
        found = Experiment(config(**changes)).identity.fingerprints
        return found["data"], found["program"]

    before = prints()
    # What runs that share data and program may differ in.
    assert prints(seed=1, arms=("bulk_sgd",), num_steps=30, subspace__rank=2) == before
    monkeypatch.setitem(layers.ACTIVATIONS, "tanh", lambda outputs: jnp.tanh(outputs))
    assert prints() == before
    with monkeypatch.context() as patch:
        edit("loss", patch)
        assert prints()[0] == before[0]
        assert prints()[1] != before[1]
    drawn = prints(model__init="torch")
    draw = jax.random.uniform
    with monkeypatch.context() as patch:
        patch.setattr(jax.random, "uniform", lambda *rest: 2 * draw(*rest))
        assert prints(model__init="torch")[1] != drawn[1]


def test_functions_in_a_program_have_no_address():
    def prints(constant):
        @jax.custom_jvp
        def own(x):
            return x * np.array([1.0, constant], np.float32)

        own.defjvp(lambda x, t: (own(*x), t[0]))
        build = lambda: (lambda params, inputs: params * inputs, own(jnp.ones(2)))
        batch = (jax.ShapeDtypeStruct((3, 2), np.float32),) * 2
        fields = tiny().optimizer
        return fingerprints.of_program(build, jnp.subtract, fields, *batch)

    assert prints(1.0) == prints(1.0) != prints(2.0)


def test_of_many_rows_a_sample_counts(monkeypatch):
    """And of standardized ones those that were read, whose last bits stay."""
    read = []

    def of_data(number, change=0, bits=0):
        def rows(numbers):
            read.append(len(numbers))
            return np.where(numbers == 0, change, numbers)[:, None]

        lazy = LazyRows((number, 1), np.dtype(np.float64), rows)
        lazy = lazy.map(lambda x: x + bits, np.float64)
        labels = np.zeros(2, np.int32)
        return fingerprints.of_data(Dataset("", lazy, labels, labels, labels, 3))

    before = of_data(3_000)
    assert sum(read) == 3_000
    assert of_data(3_000, bits=1e-9) == before != of_data(3_000, change=1)
    monkeypatch.setattr(fingerprints, "_WHOLE", 8 * 2_999)
    read.clear()
    assert of_data(3_000) != of_data(3_000, change=1)
    assert sum(read) == 2 * 1024
    assert of_data(3_000) != of_data(3_001)


class TypeAlias(ast.stmt):
    """As Python 3.12 parses `type name = value`; its name is an expression."""

    _fields = "name", "value"


def test_a_type_statement_of_ones_own_is_code_without_a_name(monkeypatch):
    double = ast.parse("def double(x):\n    return 2 * x").body

    def of_code(value):
        alias = TypeAlias(ast.Name("Batch"), ast.Constant(value))
        with monkeypatch.context() as patch:
            patch.setattr(ast, "parse", lambda _: ast.Module([alias, *double]))
            return fingerprints.of_code({"own": ""})["own"]

    first, second = of_code(1), of_code(2)
    assert first.keys() == {"", "double"}
    assert first[""] != second[""]
    assert first["double"] == second["double"]
