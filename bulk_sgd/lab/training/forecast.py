"""How much memory of each device a run will need, told before anything is compiled.

Parameters, optimizer state, basis and data are exact: their shapes and layouts are
known. What a step works with is estimated from the jaxpr of the training program as one
device sees it, with its share of the examples.
"""

import os
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bulk_sgd.curvature.objective import Objective
from bulk_sgd.lab.data.reader import Batches
from bulk_sgd.lab.devices import sharding
from bulk_sgd.lab.from_config import losses
from bulk_sgd.lab.models.build import build_model
from bulk_sgd.lab.training import liveness, steps

# The fields that make a part smaller when they are lowered, and when they are raised.
_REMEDIES = {
    "parameters": ("config.model", "config.sharding.fsdp"),
    "optimizer": ("config.model", "config.sharding.fsdp"),
    "basis": ("config.subspace.rank", "config.sharding.fsdp"),
    "states kept": ("config.subspace.rank", "config.sharding.fsdp"),
    "solver": ("config.subspace.max_basis", "config.sharding.fsdp"),
    "gradients": ("config.model", "config.sharding.fsdp"),
    "activations": ("config.batch_size, config.microbatch_size (0 is all)", ""),
    "data": (
        "config.data.num_train (with config.data.streaming config.eval_every, "
        "config.subspace.subset_size)",
        "config.sharding.data",
    ),
}


class Forecast(NamedTuple):
    """Bytes on each device.

    Attributes:
      parameters: θ.
      optimizer: moments and the like.
      basis: the k eigenvectors, and what else the transform and its solver carry.
      data: training, test and curvature examples, each once, and those that one
        dispatch of a streaming run is fed.
      solver: rows that a solve works with.
      gradients: other vectors like the parameters, whole where a product needs them.
      activations: everything else that a step or a product of the solver works with.
      kept: states beside that of the step: the fork, arms that have ended, the
        initial parameters.
    """

    parameters: int
    optimizer: int
    basis: int
    data: int
    solver: int
    gradients: int
    activations: int
    kept: int

    @property
    def program(self) -> int:
        """What the training program takes.

        XLA's memory analysis counts the examples once more where the curvature is that
        of the training set: they are two arguments, and one array.
        """
        return sum(self) - self.kept

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self)

    def __str__(self):
        parts = ", ".join(
            f"{name.replace('kept', 'states kept')} {_bytes(size)}"
            for name, size in self._asdict().items()
        )
        return f"memory per device, forecast: {_bytes(self.total)} ({parts})"


def abstract(config, layout, dataset):
    """What a run is made of as shapes in their layout; nothing is allocated.

    Args:
      config: a validated config.
      layout: `sharding.Layout`.
      dataset: `Dataset`, of which shapes and types are used.

    Returns:
      The `steps.TrainState`, the `steps.Task`, and the feed of a dispatch as
      `steps.Programs.train` takes it, of `ShapeDtypeStruct`s.
    """
    model_fn, params = layout.abstract(
        lambda: build_model(
            config.model,
            dataset.train_inputs.shape[1:],
            dataset.num_classes,
            config.seed,
            dataset.vocab_size,
        )
    )
    loss_fn = losses.build(config.loss, dataset.num_classes)
    size = config.microbatch_size or None

    def objective(inputs, targets, length=None):
        shapes = [
            jax.ShapeDtypeStruct(
                (length or x.shape[0], *x.shape[1:]), x.dtype, sharding=layout.examples
            )
            for x in (inputs, targets)
        ]
        return Objective(model_fn, loss_fn, *shapes, size, layout.num_groups)

    examples = dataset.train_inputs, dataset.train_targets
    subset = objective(*examples, config.subspace.subset_size)
    train = subset if config.data.streaming else objective(*examples)
    curvature = {"full": train, "subset": subset, "batch": None}[config.subspace.data]
    test = objective(dataset.test_inputs, dataset.test_targets)
    task = steps.Task(train, test, curvature)
    state = jax.eval_shape(steps.Programs(config, layout).init, params)
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    state = jax.tree.map(place, state, layout.state(state))
    shape = config.eval_every, config.batch_size
    feed = jax.ShapeDtypeStruct(shape, np.int32, sharding=layout.replicated)
    if config.data.streaming:
        fed = lambda x: jax.ShapeDtypeStruct((*shape, *x.shape[1:]), x.dtype)
        feed = Batches(*(place(fed(x), layout.batches) for x in examples))
    return state, task, feed


def forecast(config, layout, dataset) -> Forecast:
    """The memory that a run needs on each device.

    Args:
      config: a validated config.
      layout: `sharding.Layout`, which has checked the config.
      dataset: `Dataset`.

    Example:
      >>> from bulk_sgd.lab import config
      >>> from bulk_sgd.lab.data import sources
      >>> from bulk_sgd.lab.training import forecast
      >>> from bulk_sgd.lab.devices.sharding import Layout
      >>> config = config.default()
      >>> config.data.num_train, config.model.hidden = 100, (8,)
      >>> dataset = sources.load(config.data)
      >>> found = forecast.forecast(config, Layout.of(config), dataset)
      >>> found.parameters == 4 * (784 * 8 + 8 + 8 * 10 + 10)
      True
      >>> found.basis // found.parameters
      10
    """
    state, task, feed = abstract(config, layout, dataset)
    share = lambda tree: sum(
        _size(x.sharding.shard_shape(x.shape), x.dtype) for x in jax.tree.leaves(tree)
    )
    # Curvature of the training set is that of the very same arrays.
    own = None if task.curvature is task.train else task.curvature
    arms = max(1, len(config.arms))
    working = _working(config, layout, dataset, state)
    known = {"rows": 0, "vectors": 0, "gathered": 0} | working.kinds
    solver = max(0, known["rows"])
    gradients = max(0, known["vectors"]) + known["gathered"]
    return Forecast(
        parameters=share(state.params),
        optimizer=share(state.inner),
        basis=share((state.subspace, state.step, state.loss)),
        data=share((task.train, task.test, own, feed)),
        solver=solver,
        gradients=gradients,
        activations=max(0, working.num_bytes - solver - gradients),
        kept=arms * share(state) + share(state.params),
    )


def check(found: Forecast, device):
    """Raises ValueError if a forecast is more than a device has.

    Args:
      found: a `Forecast`.
      device: a `jax.Device`.
    """
    limit = capacity(device)
    if found.total <= limit:
        return
    sizes = {k.replace("kept", "states kept"): v for k, v in found._asdict().items()}
    largest = [name for name in sorted(sizes, key=sizes.get)[::-1] if sizes[name]][:3]
    lower = dict.fromkeys(_REMEDIES[name][0] for name in largest)
    higher = dict.fromkeys(filter(None, (_REMEDIES[name][1] for name in largest)))
    parts = ", ".join(f"{name} {_bytes(sizes[name])}" for name in largest)
    raise ValueError(
        f"The run needs about {_bytes(found.total)} on each device, which has "
        f"{_bytes(limit)} ({parts}, …): lower {', '.join(lower)}"
        + (f", or raise {', '.join(higher)}" if higher else "")
        + " (config.check_memory = False runs it all the same)."
    )


def capacity(device) -> int:
    """Bytes that a device can hold: what it says, or its part of the machine's RAM."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return limit
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return ram // jax.local_device_count()


def _working(config, layout, dataset, state) -> liveness.Peak:
    """What the training program needs beyond its arguments.

    It is traced as for one device that holds its part of the examples and the whole of
    every vector; the share of each vector is counted.
    """
    size = layout.mesh.size
    local = ConfigDict(config.to_dict())
    local.batch_size //= size
    local.microbatch_size //= size
    local.subspace.subset_size = max(1, local.subspace.subset_size // size)
    part = dataset._replace(
        **{
            name: jax.ShapeDtypeStruct((x.shape[0] // size, *x.shape[1:]), x.dtype)
            for name, x in dataset._asdict().items()
            if hasattr(x, "shape")
        }
    )
    alone = ConfigDict({"data": 1, "fsdp": 1})
    one = sharding.Layout(sharding.make_mesh(alone, jax.local_devices()[:1]))
    local_state, task, feed = abstract(local, one, part)
    traced = steps.Programs(local, _LeafByLeaf(one.mesh)).train.trace(
        local_state,
        task,
        feed,
        1,
        steps.Scalars(0.1),
        projected=True,
    )
    # Along an axis before a parameter's shape are rows, however many a solver takes, or
    # else examples. Those of a bias are small, and look like the transpose of a kernel.
    examples = {x.shape[0] for x in jax.tree.leaves(task)}
    examples |= {n % local.microbatch_size for n in examples if local.microbatch_size}
    examples |= {local.batch_size, local.microbatch_size}
    examples -= {config.subspace.rank}  # by far the likelier of two
    parts = {
        x.shape: x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(state.params)
    }

    def measure(aval):
        shape = aval.shape
        if shape in parts:
            return "vectors", _size(parts[shape], aval.dtype)
        if len(shape) > 2 and shape[1:] in parts and shape[0] not in examples:
            return "rows", _size((shape[0], *parts[shape[1:]]), aval.dtype)
        return "activations", _size(shape, aval.dtype)

    def gathered(aval):
        split = parts.get(aval.shape, aval.shape) != aval.shape
        return _size(aval.shape, aval.dtype) if split else 0

    donated = range(len(jax.tree.leaves(local_state)))
    return liveness.peak(traced.jaxpr, measure, donated, gathered)


class _LeafByLeaf(sharding.Layout):
    """A layout on one device whose vectors count as spread over several.

    Those on a single one a solver packs, into arrays of other shapes than parameters
    have, and of one or two vectors more.
    """

    def parameters(self, tree):
        """A copy on each of two devices, which need not be there."""
        mesh = jax.sharding.AbstractMesh(
            (2,), ("anywhere",), (jax.sharding.AxisType.Auto,)
        )
        copies = jax.NamedSharding(mesh, jax.P())
        return jax.tree.map(lambda _: copies, tree)


def _size(shape, dtype) -> int:
    # Keys of random numbers have a dtype of their own.
    return int(np.prod(shape)) * getattr(dtype, "itemsize", 8)


def _bytes(number: float) -> str:
    """
    >>> _bytes(1_234_567), _bytes(0)
    ('1.23 MB', '0 B')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"
