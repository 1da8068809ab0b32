"""The memory forecast: against the bytes of arrays and of compiled programs."""

from types import SimpleNamespace

import jax
import pytest
from helpers import abstract_mesh
from tiny_runs import compilations

from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.data import sources
from bulk_sgd.lab.data.rows import LazyRows
from bulk_sgd.lab.devices.sharding import Layout
from bulk_sgd.lab.training import memory_forecast, train
from bulk_sgd.lab.training.experiment import Experiment


def small(**changes):
    config = config_lib.default()
    config.data.num_train, config.data.num_test = 64, 16
    config.model.hidden = (20,)
    config.batch_size, config.eval_every = 16, 5
    config.num_steps, config.switch.step, config.arms = 10, 5, ("bulk_sgd",)
    config.subspace.rank = 4
    config.progress = config.tensorboard = False
    config.update_from_flattened_dict(changes)
    return config


def quick(**changes):
    """A run whose programs compile in a second or two."""
    return small(**{"subspace.solver": "update_pca", "subspace.window": 6} | changes)


def bytes_of(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("curvature", ["full", "subset", "batch", "read subset"])
def test_arrays_are_exact(curvature):
    config = small(**{"optimizer.name": "adam", "subspace.subset_size": 32})
    config.data.streaming = curvature.startswith("read")
    config.subspace.data = curvature.split()[-1]
    experiment = Experiment(config)
    state = experiment.start()
    found = memory_forecast.of_arrays(experiment)
    assert found.parameters == bytes_of(state.params)
    assert found.optimizer == bytes_of(state.inner)
    assert found.basis == bytes_of((state.projection, state.step, state.loss))
    # The fork, no arm beside it, and the initial parameters.
    assert found.kept == bytes_of(state) + bytes_of(state.params)
    arrays = jax.tree.leaves((experiment.task, experiment.feed(0)))
    experiment.close()
    # The training set may be that of the curvature too: its arrays are there once.
    assert found.data == bytes_of(list({id(x): x for x in arrays}.values()))
    assert found.step is None


def test_lanes_and_runs_have_states_of_their_own():
    experiment = Experiment(
        small(**{"subspace.data": "subset", "subspace.subset_size": 32})
    )
    one, three = (
        memory_forecast.of_arrays(experiment, n, runs) for n, runs in ((1, 1), (3, 2))
    )
    assert three.parameters == 3 * one.parameters
    assert three.solver == 3 * one.solver
    assert three.kept == 2 * one.kept
    # The subset of each lane, and the indices of its batches.
    own = bytes_of(experiment.task.curvature) + 4 * 5 * 16
    assert three.data == one.data + 2 * own


def forecast_on(monkeypatch, mesh, config):
    layout = Layout(abstract_mesh(*mesh))
    monkeypatch.setattr(Layout, "of", lambda config, devices: layout)
    return memory_forecast.of_arrays(Experiment(config, devices=()))


@pytest.mark.parametrize(
    ("fields", "num_rows"),
    [
        ({}, 19),  # 2 rank + 10, and the next one
        ({"solver": "power"}, 19),
        ({"solver": "krylov_filter"}, 21),  # a solve for rank + 1
        ({"solver": "streaming", "columns": 2}, 2),
        ({"solver": "update_pca", "window": 12}, 0),  # they are in its state
        ({"blocks": "layer"}, 0),  # unknown
        ({"max_basis": 8}, 9),
    ],
)
def test_parts_shrink_with_the_mesh_as_they_are_split(monkeypatch, fields, num_rows):
    config = small(**{f"subspace.{name}": x for name, x in fields.items()})
    one, data_, fsdp = (
        forecast_on(monkeypatch, mesh, config) for mesh in ((1, 1), (4, 1), (1, 4))
    )
    assert one.solver == num_rows * one.parameters
    for name in ("parameters", "basis", "solver"):
        assert getattr(data_, name) == getattr(one, name)
        # The bias of 10 classes has no axis that 4 divides.
        assert getattr(fsdp, name) == pytest.approx(getattr(one, name) / 4, rel=0.01)
    indices = 4 * 5 * 16  # whole on every device
    assert fsdp.data == data_.data == (one.data - indices) / 4 + indices


def test_factors_make_the_basis_small(monkeypatch):
    space = {"subspace.solver": "streaming"}
    dense, factored = (
        forecast_on(monkeypatch, (1, 1), small(**space, **{"subspace.factors": rank}))
        for rank in (0, 2)
    )
    # A tangent and nothing else is as large as the parameters.
    assert factored.solver == dense.solver == dense.parameters
    # Of 784 x 20 and of 20 x 10 two directions, and two coordinates in each column.
    saved = 4 * (4 * 784 * 20 - 2 * (784 + 4 * 20) + 4 * 20 * 10 - 2 * (20 + 4 * 10))
    assert 0 < factored.basis - (dense.basis - saved) < 4 * 100


def test_batches_that_are_read_are_split_over_the_devices(monkeypatch):
    config = small(**{"data.streaming": True, "subspace.data": "subset"})
    config.subspace.subset_size = 32
    one, four = (
        forecast_on(monkeypatch, mesh, config).data for mesh in ((1, 1), (2, 2))
    )
    # Test examples, the subset, and five batches of 16.
    assert one == 4 * four == (16 + 32 + 5 * 16) * (4 * 784 + 4)


class Device:
    """A device with so many bytes, or one that does not tell."""

    def __init__(self, limit=None):
        self.limit = limit

    def memory_stats(self):
        return self.limit and {"bytes_limit": self.limit}


GIGA = 10**9
PARTS = dict.fromkeys(memory_forecast.Forecast._fields, GIGA)


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("step", r"lower config\.batch_size, config\.microbatch_size"),
        ("solver", r"config\.subspace\.max_basis.* or raise .*config\.sharding\.fsdp"),
        ("basis", r"lower config\.subspace\.rank"),
        ("data", r"lower config\.data\.num_train .*streaming config\.eval_every"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_fields_to_lower(part, fields):
    found = memory_forecast.Forecast(**PARTS | {part: 20 * GIGA})
    told = rf"needs 26 GB on each device, which has 16 GB \({part} 20 GB, .*{fields}"
    with pytest.raises(ValueError, match=told):
        memory_forecast.check(found, Device(16 * GIGA))
    memory_forecast.check(found, Device(26 * GIGA))


def test_a_device_that_does_not_tell_has_its_part_of_the_machine():
    machine = memory_forecast.capacity(Device()) * jax.local_device_count()
    assert 2**28 < machine < 2**50


def test_what_certainly_does_not_fit_is_refused_before_anything_is_made(
    monkeypatch, tmp_path
):
    def read(numbers):
        raise AssertionError(f"{len(numbers)} examples are read")

    config = small()
    dataset = sources.load(config.data)
    lazy = {
        name: LazyRows(x.shape, x.dtype, read)
        for name, x in dataset._asdict().items()
        if hasattr(x, "shape")
    }
    monkeypatch.setattr(sources, "find", lambda _: dataset._replace(**lazy))
    monkeypatch.setattr(Layout, "born", None)
    monkeypatch.setattr(memory_forecast, "capacity", lambda device: 1000)
    with pytest.raises(ValueError, match=r"needs at least .* which has 1 kB \(solver "):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    Experiment(small(check_memory=False))


def test_what_the_compiler_finds_too_large_is_refused_before_the_first_step(
    monkeypatch, tmp_path, caplog, shared_programs
):
    shared_programs.clear()
    arrays = memory_forecast.of_arrays(Experiment(quick()))
    monkeypatch.setattr(memory_forecast, "capacity", lambda device: arrays.total)
    experiment = Experiment(quick())  # the arrays fit
    with (
        jax.log_compiles(),
        pytest.raises(ValueError, match=r"needs [\d.]+ MB on each .*step [\d.]+ MB"),
    ):
        train.train_together([experiment], [tmp_path])
    assert compilations(caplog, "_train") == 2
    assert compilations(caplog, "evaluate") == 0  # as for the first row
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("checked", [True, False])
def test_the_program_that_is_analysed_is_the_one_that_runs(
    monkeypatch, tmp_path, caplog, checked, shared_programs
):
    shared_programs.clear()
    analysed, of_program = [], memory_forecast.of_program
    monkeypatch.setattr(
        memory_forecast,
        "of_program",
        lambda arrays, program: analysed.append(program) or of_program(arrays, program),
    )
    if not checked:
        monkeypatch.setattr(memory_forecast, "of_arrays", None)
    experiment = Experiment(quick(check_memory=checked))
    with jax.log_compiles():
        train.train_together([experiment], [tmp_path])
    # One without a subspace and one with it, and nothing but these has run.
    assert compilations(caplog, "_train") == 2
    assert compilations(caplog, "evaluate") == 1
    assert experiment.programs.train._cache_size() == 0
    program = experiment.programs._executables[1, True]
    assert analysed == ([program] if checked else [])


@pytest.mark.parametrize(
    "fields",
    [
        {"solver": "update_pca", "window": 6},
        *(
            pytest.param({"solver": name}, marks=pytest.mark.slow)
            for name in ("lanczos", "power", "krylov_filter", "streaming")
        ),
    ],
    ids=lambda fields: fields["solver"],
)
def test_a_forecast_is_what_the_compiler_counts(fields):
    """And the vectors of the solver are certain: the compiler has room for them."""
    config = small(**{f"subspace.{name}": x for name, x in fields.items()})
    config.subspace.data = "batch"
    made = Experiment(config)
    arguments = made.start(), made.task, made.feed(0), 0, made.scalars()
    program = made.programs.compiled(*arguments, projected=True)
    arrays = memory_forecast.of_arrays(made)
    found = memory_forecast.of_program(arrays, program)
    memory = program.memory_analysis()
    taken = memory.argument_size_in_bytes + memory.output_size_in_bytes
    taken += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    # XLA drops the test set, which no step reads, and counts eight numbers.
    ours = found.total - found.kept - bytes_of(made.task.test)
    assert ours == pytest.approx(taken, abs=64)
    assert found.solver == arrays.solver <= memory.temp_size_in_bytes


def test_a_backend_that_does_not_count_is_said_and_goes_on():
    said, experiment = [], Experiment(quick())
    silent = SimpleNamespace(memory_analysis=lambda: None)
    trainer = SimpleNamespace(executables={True: silent})
    train._check_memory([experiment], 1, trainer, SimpleNamespace(say=said.append))
    (line,) = said
    assert line.startswith("memory per device: ")
    assert line.endswith("the backend does not say what a step takes beyond it")
