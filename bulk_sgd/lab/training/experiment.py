"""An experiment: everything that a config stands for, built and checked."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from bulk_sgd.curvature.objective import Objective
from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab import network_checks, plugins, validation
from bulk_sgd.lab.data import sources
from bulk_sgd.lab.data.batches import batch_indices
from bulk_sgd.lab.data.reader import Batches, Reader
from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.devices.sharding import Layout
from bulk_sgd.lab.files import identities
from bulk_sgd.lab.from_config import arms as arms_lib
from bulk_sgd.lab.from_config import losses
from bulk_sgd.lab.models.build import build_model
from bulk_sgd.lab.training import fingerprints, memory_forecast
from bulk_sgd.lab.training.state import Scalars, Task, TrainState
from bulk_sgd.lab.training.steps import Programs

# Experiments that differ in nothing else share a prefix that an alignment can end.
_AFTER_ALIGNMENT = (
    *("arms", "num_steps", "measures.last_sharpness", "measures.sgd_subspace"),
    *identities.IMMATERIAL,
)
# A prefix that ends at a step depends on none of these either.
_AFTER_STEP = (
    *_AFTER_ALIGNMENT,
    "measures.every",
    "measures.num_probes",
    "measures.step_every",
    "optimizer.projection",
    "stability",
    "switch.alignment",
    "switch.decay",
    "switch.gradient",
    "switch.measure_every",
)
# Experiments that differ in nothing else share their compiled programs.
_FREE = (
    *_AFTER_ALIGNMENT,
    "measures.every",
    "measures.sharpness_every",
    "optimizer.learning_rate",
    "seed",
    "stability",
    "subspace.refresh_every",
    "switch.alignment",
    "switch.measure_every",
    "switch.step",
)


class Experiment:
    """Task, network, programs and arms of a config; nothing is compiled.

    It is built as shapes first and, if they fit the memory of the devices, as arrays.

    Args:
      config: a ConfigDict with the fields of `bulk_sgd.lab.config.default()`.
      like: another experiment, whose data, programs and arrays serve again where both
        configs allow it.
      devices: descriptions of devices for the compiler alone: parameters, task and feed
        then stay shapes, and the memory is not checked.

    Raises:
      ValueError: if a field is out of its range, processes have other configs, the data
        cannot be read, or the arrays do not fit the memory of a device.
    """

    def __init__(self, config, like: "Experiment | None" = None, *, devices=None):
        config_lib.validate(config)
        distributed.check_agreement(identities.plain(config))
        self.config = config
        self.arms = arms_lib.parse_all(config.arms)
        self.layout = Layout.of(config, devices)
        if like is not None and like.config.data.to_dict() == config.data.to_dict():
            self.dataset, self._of_data = like.dataset, like._of_data
        else:
            self.dataset = sources.find(config.data)
            self._of_data = _once(fingerprints.of_data, self.dataset)
        validation.check_data(config, self.dataset, self.layout.mesh)
        build = functools.partial(
            build_model,
            config.model,
            self.dataset.train_inputs.shape[1:],
            self.dataset.num_classes,
            vocab_size=self.dataset.vocab_size,
        )
        seeded = functools.partial(build, seed=config.seed)
        self.model_fn, self.params = self.layout.abstract(seeded)
        self.loss_fn = losses.build(config.loss, self.dataset.num_classes)
        made = self.model_fn, self.loss_fn, self.params
        network_checks.check_network(config, self.dataset, *made)
        shared = like is not None and program_of(like.config) == program_of(config)
        self.programs = like.programs if shared else Programs(config, self.layout)
        self._of_program = like._of_program if shared else self._program_hash(build)
        with network_checks.naming_fields(config.subspace):
            self.state = self._state()
        self.task = self._task(self.layout.shape_examples)
        if config.measures.own:  # their errors come before anything is compiled
            jax.eval_shape(self.programs.own, self.state, self.task, self.params)
        self._reader = None
        if devices is not None:
            return
        if config.check_memory:
            memory_forecast.check(memory_forecast.of_arrays(self))
        _, self.params = self.layout.born(seeded)
        self.task = self._task(self.layout.put_examples, like.task if shared else None)
        if config.data.streaming:
            inputs, targets = self.dataset.train_inputs, self.dataset.train_targets
            self._reader = Reader(inputs, targets, self.indices, config.eval_every)

    @property
    def doubts(self) -> list[str]:
        """Sentences about possible mistakes, to print before the first step."""
        made = self.model_fn, self.params
        return network_checks.doubts(self.config, self.dataset, *made)

    @property
    def identity(self) -> identities.Identity:
        """The identity that a record, a checkpoint or a prefix must have to serve here.

        The data are read and the program is traced on the first call alone.
        """
        prints = {"data": self._of_data(), "program": self._of_program()}
        prints["code"] = fingerprints.of_code(plugins.sources(self.config))
        prints["tracer"] = fingerprints.tracer()
        return identities.Identity(identities.plain(self.config), prints)

    def indices(self, first_step: int, num_steps: int | None = None):
        """Examples of steps, by default of one dispatch, int32 `(n, batch_size)`."""
        return batch_indices(
            self.config.seed,
            first_step,
            num_steps or self.config.eval_every,
            len(self.dataset.train_targets),
            self.config.batch_size,
        )

    def start(self) -> TrainState:
        """The state before the first step."""
        return self.programs.init(self.params, self.config.seed)

    def feed(self, first_step: int):
        """The examples of one dispatch as `Programs.train` takes them.

        These are `indices` or, for data read while training, `Batches` over the
        devices.
        """
        if self._reader is None:
            return jnp.asarray(self.indices(first_step))
        return self.layout.put_batches(self._reader.read(first_step))

    def feed_shape(self):
        """The `ShapeDtypeStruct`s of a feed, in their layout."""
        shape = self.config.eval_every, self.config.batch_size
        if not self.config.data.streaming:
            place = self.layout.replicated
            return jax.ShapeDtypeStruct(shape, np.int32, sharding=place)
        read = lambda x: jax.ShapeDtypeStruct(
            (*shape, *x.shape[1:]), x.dtype, sharding=self.layout.batches
        )
        return Batches(
            *map(read, (self.dataset.train_inputs, self.dataset.train_targets))
        )

    def close(self):
        """Ends the threads that read ahead; `feed` starts them anew."""
        if self._reader is not None:
            self._reader.close()

    def scalars(self, arm: arms_lib.Arm | None = None, rate: float | None = None):
        """`Scalars` of an arm, or of the prefix, at another learning rate if given."""
        config = self.config
        rate = float(config.optimizer.learning_rate if rate is None else rate)
        if arm is None:
            every, threshold = config.switch.measure_every, config.switch.alignment
            bound = float(threshold or np.inf)
            return Scalars(rate, 1.0, 1.0, every, bound, config.seed)
        scales = float(arm.dominant_scale), float(arm.bulk_scale)
        every = config.subspace.refresh_every
        more = {"seed": config.seed, "guarded": arm.guarded}
        return Scalars(rate, *scales, every, **more)

    def _program_hash(self, build):
        shape = lambda x: jax.ShapeDtypeStruct(
            (self.config.batch_size, *x.shape[1:]), x.dtype
        )
        batch = shape(self.dataset.train_inputs), shape(self.dataset.train_targets)
        born = functools.partial(build, seed=0)  # experiments of other seeds share it
        fields = self.config.optimizer
        own = plugins.sources(self.config)
        return _once(fingerprints.of_program, born, self.loss_fn, fields, *batch, own)

    def _state(self) -> TrainState:
        state = jax.eval_shape(self.programs.init, self.params)
        place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
        return jax.tree.map(place, state, self.layout.state(state))

    def _task(self, put, known: Task | None = None) -> Task:
        """The data as `put` lays out host rows; `known` lends all but the subset."""
        config, set_ = self.config, self.dataset
        num_train = len(set_.train_targets)

        def objective(inputs, targets, order=None):
            return Objective(
                self.model_fn,
                self.loss_fn,
                put(inputs, order),
                put(targets, order),
                config.microbatch_size or None,
                self.layout.num_groups,
            )

        test = known.test if known else objective(set_.test_inputs, set_.test_targets)
        curvature = {"batch": None}
        size = validation.num_subset(config)
        if size:
            order = np.random.default_rng([config.seed, 1]).permutation(num_train)
            subset = objective(set_.train_inputs, set_.train_targets, order[:size])
            curvature["subset"] = subset
        if config.data.streaming:
            train = subset
        elif known:
            train = known.train
        else:
            train = objective(set_.train_inputs, set_.train_targets)
        curvature["full"] = train
        return Task(train, test, curvature[config.subspace.data], num_train)


def _once(fn, *arguments):
    """A function without arguments that calls `fn` on its first call alone."""
    return functools.cache(functools.partial(fn, *arguments))


def prefix_of(config) -> str:
    """Names the prefix: equal for configs whose runs fork from the same state."""
    if config.switch.alignment > 0:
        return _without(config, _AFTER_ALIGNMENT)
    later = [f"subspace.{name}" for name in config.subspace]
    # Its rows of metrics depend on these.
    if config.measures.sharpness_every:
        later.remove("subspace.mode")
        later.remove("subspace.preconditioned")
    if config.data.streaming:
        later.remove("subspace.subset_size")
    return _without(config, (*_AFTER_STEP, *later))


def program_of(config) -> str:
    """Names the compiled programs: equal for configs that can share them."""
    return _without(config, _FREE)


def _without(config, fields) -> str:
    """The config as canonical text, without some of its dotted fields."""
    plain = identities.plain(config)
    for field in fields:
        *groups, name = field.split(".")
        functools.reduce(dict.__getitem__, groups, plain).pop(name)
    return json.dumps(plain, sort_keys=True)
