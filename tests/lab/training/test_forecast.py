"""The memory forecast: against the bytes of arrays and of compiled programs."""

import collections

import jax
import jax.numpy as jnp
import pytest
from helpers import abstract_mesh

from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.data import sources
from bulk_sgd.lab.data.rows import LazyRows
from bulk_sgd.lab.devices.sharding import Layout
from bulk_sgd.lab.training import forecast, liveness, steps, train
from bulk_sgd.lab.training.experiment import Experiment


def small(**changes):
    config = config_lib.default()
    config.data.num_train, config.data.num_test = 64, 16
    config.model.hidden = (20,)
    config.batch_size, config.eval_every = 16, 5
    config.subspace.rank = 4
    config.progress = config.tensorboard = False
    config.update_from_flattened_dict(changes)
    return config


def language(**changes):
    fields = {"data.name": "random", "data.normalization": "none", "data.length": 16}
    fields |= {"data.vocab_size": 32, "model.name": "decoder", "model.tied": True}
    fields |= {"model.width": 16, "model.num_layers": 1, "model.num_heads": 2}
    fields |= {"loss.name": "cross_entropy", "model.activation": "gelu"}
    return small(**fields | changes)


def forecast_of(config, mesh=(1, 1)):
    layout = Layout(abstract_mesh(*mesh))
    return forecast.forecast(config, layout, sources.load(config.data))


def bytes_of(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("curvature", ["full", "subset", "batch", "streamed subset"])
def test_parameters_optimizer_basis_and_data_are_exact(curvature):
    config = small(**{"optimizer.name": "adam", "subspace.subset_size": 32})
    config.data.streaming = curvature.startswith("streamed")
    config.subspace.data = curvature.split()[-1]
    experiment = Experiment(config)
    state = steps.Programs(config).init(experiment.params)
    found = experiment.forecast
    assert found.parameters == bytes_of(state.params)
    assert found.optimizer == bytes_of(state.inner)
    assert found.basis == bytes_of((state.subspace, state.step, state.loss))
    arrays = jax.tree.leaves((experiment.task, experiment.feed(0)))
    experiment.close()
    # As much as lies there: the training set may be that of the curvature too.
    assert found.data == bytes_of(list({id(x): x for x in arrays}.values()))


def test_a_forecast_reads_no_example():
    def read(numbers):
        raise AssertionError(f"{len(numbers)} examples are read")

    config = small()
    dataset = sources.load(config.data)
    lazy = {
        name: LazyRows(x.shape, x.dtype, read)
        for name, x in dataset._asdict().items()
        if hasattr(x, "shape")
    }
    layout = Layout.of(config)
    found = forecast.forecast(config, layout, dataset._replace(**lazy))
    assert found == forecast.forecast(config, layout, dataset)


@pytest.mark.parametrize(
    ("fields", "num_rows"),
    [
        ({}, 19),  # 2 rank + 10 and one more
        ({"solver": "krylov_filter", "length": 7}, 21),  # a solve for rank + 1
        ({"solver": "update_pca", "window": 12}, 12),
        ({"blocks": "layer"}, 15),  # half of the rank in the larger layer
    ],
    ids=["lanczos", "krylov_filter", "update_pca", "blocks"],
)
def test_parts_shrink_with_the_mesh_as_they_are_split(fields, num_rows):
    config = small(**{f"subspace.{name}": x for name, x in fields.items()})
    one, data_, fsdp = (forecast_of(config, m) for m in ((1, 1), (4, 1), (1, 4)))
    assert one.solver >= num_rows * 4 * 784 * 20
    for name in ("parameters", "basis", "solver"):
        assert getattr(data_, name) == getattr(one, name)
        # The bias of 10 classes has no axis that 4 divides.
        assert getattr(fsdp, name) == pytest.approx(getattr(one, name) / 4, rel=0.01)
    indices = 4 * 5 * 16  # whole on every device
    assert fsdp.data == data_.data == (one.data - indices) / 4 + indices


def test_streamed_batches_are_split_over_the_devices():
    config = small(**{"data.streaming": True, "subspace.data": "subset"})
    config.subspace.subset_size = 32
    one, four = (forecast_of(config, mesh).data for mesh in ((1, 1), (2, 2)))
    # Test examples, the subset, and five batches of 16.
    assert one == 4 * four == (16 + 32 + 5 * 16) * (4 * 784 + 4)


@pytest.mark.parametrize(
    ("config", "tolerance"),
    [
        (small(microbatch_size=32), 0.15),
        (small(**{"subspace.solver": "streaming", "subspace.data": "batch"}), 0.15),
        pytest.param(language(microbatch_size=16), 0.15, marks=pytest.mark.slow),
    ],
    ids=["mlp, lanczos", "mlp, streaming", "decoder, lanczos"],
)
def test_forecast_is_near_what_the_compiler_takes(config, tolerance):
    layout, dataset = Layout.of(config), sources.load(config.data)
    found = forecast.forecast(config, layout, dataset)
    state, task, feed = forecast.abstract(config, layout, dataset)
    program = steps.Programs(config, layout).train.lower(
        state, task, feed, 1, steps.Scalars(0.1), projected=True
    )
    memory = program.compile().memory_analysis()
    taken = memory.argument_size_in_bytes + memory.output_size_in_bytes
    taken += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    if task.curvature is task.train:  # two arguments, one array
        taken -= sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(task.train))
    assert found.program == pytest.approx(taken, rel=tolerance)


class Device:
    """A device with so many bytes, or one that does not tell."""

    def __init__(self, limit=None):
        self.limit = limit

    def memory_stats(self):
        return self.limit and {"bytes_limit": self.limit}


GIGA = 10**9
PARTS = dict.fromkeys(forecast.Forecast._fields, GIGA)


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("activations", r"lower config\.batch_size, config\.microbatch_size"),
        ("solver", r"config\.subspace\.max_basis.* or raise .*config\.sharding\.fsdp"),
        ("basis", r"lower config\.subspace\.rank"),
        ("data", r"lower config\.data\.num_train .*streaming config\.eval_every"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_fields_to_lower(part, fields):
    found = forecast.Forecast(**PARTS | {part: 20 * GIGA})
    told = rf"about 27 GB on each device, which has 16 GB \({part} 20 GB, .*{fields}"
    with pytest.raises(ValueError, match=told):
        forecast.check(found, Device(16 * GIGA))
    forecast.check(found, Device(27 * GIGA))


def test_a_device_that_does_not_tell_has_its_part_of_the_machine():
    machine = forecast.capacity(Device()) * jax.local_device_count()
    assert 2**28 < machine < 2**50


def test_a_run_that_does_not_fit_is_refused_before_it_starts(monkeypatch, tmp_path):
    monkeypatch.setattr(forecast, "capacity", lambda device: 1000)
    born = Layout.born
    monkeypatch.setattr(Layout, "born", None)
    with pytest.raises(ValueError, match=r"needs about .* which has 1 kB"):
        train.train_and_evaluate(small(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(Layout, "born", born)
    assert Experiment(small(check_memory=False)).forecast.total > 1000


def peak_of(f, *arguments, donated=()):
    measure = lambda aval: ("all", aval.dtype.itemsize * aval.size)
    traced = jax.jit(f).trace(*arguments)
    return liveness.peak(traced.jaxpr, measure, donated).num_bytes


SIZE = 4 * 50 * 50
X = jnp.ones((50, 50))


@pytest.mark.parametrize(
    ("f", "arrays"),
    [
        (lambda x: x + 1, 1),  # a result
        (lambda x: (x + 1) @ (x - 1), 1),  # fused into what reads it
        (lambda x: (x @ x) @ x, 2),
        (lambda x: ((x @ x) @ x) @ x, 2),  # the first product is free by then
        (lambda x: (lambda y: jnp.sin(y) @ (jnp.exp(y) @ y))(x @ x), 3),
        (lambda x: (lambda s: s @ x @ x @ s)(jnp.sin(x)), 3),  # kept for two readers
        (lambda x: (lambda s: s @ x @ x @ s)(x + 1), 2),  # computed again
        (lambda x: jax.jit(lambda x: x @ x)(x) + jax.jit(lambda x: x)(x), 1),
        (lambda x: jax.lax.fori_loop(0, 9, lambda i, y: y + 1, x @ x), 1),  # in place
        (lambda x: jax.lax.fori_loop(0, 9, lambda i, y: y + 1, x + 1), 1),
        (lambda x: jax.lax.fori_loop(0, 9, lambda i, y: y + x, jnp.zeros_like(x)), 1),
        (lambda x: jax.lax.fori_loop(0, 9, lambda i, y: y @ y, x @ x), 2),
        # Computed once, before the loop that reads it.
        (lambda x: jax.lax.fori_loop(0, 9, lambda i, s, y=x + 1: s + y[i, i], 0.0), 1),
        (lambda x: jax.lax.map(lambda i: i * x @ x, jnp.arange(5.0)), 6),
        (lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x), 2),
        (lambda x: (x @ x, x)[1] + 1, 1),  # what nobody wants
    ],
)
def test_peaks_of_programs_that_can_be_counted_by_hand(f, arrays):
    assert peak_of(f, X) == pytest.approx(arrays * SIZE, rel=0.01)


def test_a_donated_argument_makes_room():
    body = lambda x: jnp.sin(x) + 1
    assert peak_of(body, X) == SIZE
    assert peak_of(body, X, donated=[0]) == 0


def test_kinds_add_up():
    measure = lambda aval: (f"{aval.ndim}-d", aval.dtype.itemsize * aval.size)
    traced = jax.jit(lambda x: jnp.sum(x @ x @ x, axis=0)).trace(X)
    found = liveness.peak(traced.jaxpr, measure)
    assert found == (2 * SIZE, collections.Counter({"2-d": 2 * SIZE}))


def test_products_gather_what_is_split_once():
    measure = lambda aval: ("own", aval.dtype.itemsize * aval.size // 4)
    gathered = lambda aval: SIZE if aval.shape == X.shape else 0
    peak = lambda f: liveness.peak(jax.jit(f).trace(X).jaxpr, measure, (), gathered)
    assert peak(lambda x: x + 1).kinds == {"own": SIZE // 4}
    found = peak(lambda x: jnp.sum(x @ jnp.ones(50)) * (x.T @ jnp.ones(50)))
    assert found.kinds["gathered"] == SIZE
    assert SIZE < found.num_bytes < 1.1 * SIZE
