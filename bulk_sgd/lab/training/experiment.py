"""An experiment: everything that a config stands for, built and checked."""

import functools
import json

import jax
import numpy as np

from bulk_sgd import checks
from bulk_sgd.curvature.objective import Objective
from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.data import sources
from bulk_sgd.lab.data.batches import batch_indices
from bulk_sgd.lab.data.reader import Reader
from bulk_sgd.lab.devices.sharding import Layout
from bulk_sgd.lab.files import record
from bulk_sgd.lab.from_config import arms as arms_lib
from bulk_sgd.lab.from_config import losses, solvers
from bulk_sgd.lab.models.build import build_model
from bulk_sgd.lab.training import forecast as forecast_lib
from bulk_sgd.lab.training.steps import Programs, Scalars, Task, TrainState
from bulk_sgd.linalg import basis

# What may differ between experiments that share the programs of `steps.Programs`.
_FREE = (
    "arms",
    "check_memory",
    "checkpoint",
    "measures.every",
    "measures.sharpness_every",
    "name",
    "num_steps",
    "optimizer.learning_rate",
    "progress",
    "seed",
    "stability",
    "subspace.refresh_every",
    "switch.alignment",
    "switch.measure_every",
    "switch.step",
    "tensorboard",
)
# What the prefix does not depend on, where no alignment ends it.
_AFTER_PREFIX = (
    "arms",
    "check_memory",
    "checkpoint",
    "measures.every",
    "measures.num_probes",
    "name",
    "num_steps",
    "optimizer.projection",
    "progress",
    "stability",
    "switch.alignment",
    "switch.decay",
    "switch.measure_every",
    "tensorboard",
)
_ALWAYS_AFTER_PREFIX = (
    "arms",
    "check_memory",
    "checkpoint",
    "name",
    "num_steps",
    "progress",
    "tensorboard",
)

# By what they depend on: each takes a trace of the training program.
_FORECASTS = {}


class Experiment:
    """Task, network and arms of a config; nothing is compiled.

    Args:
      config: a ConfigDict with the fields of `bulk_sgd.lab.config.default()`.
      like: another experiment, whose data are used again if they are the same, and on
        the devices if it shares the program.

    Attributes:
      arms: list of `arms.Arm`.
      forecast: `forecast.Forecast`, of the memory of each device.
      layout: `sharding.Layout`, where the arrays live.
      params: pytree of the initial parameters.
      task: `steps.Task`.

    Raises:
      ValueError: if a field is out of its range, the data cannot be read, or the run
        does not fit the memory of a device.
    """

    def __init__(self, config, like: "Experiment | None" = None):
        config_lib.validate(config)
        self.config = config
        self.arms = arms_lib.parse_all(config.arms)
        self.layout = Layout.of(config)
        shared = like is not None and program_of(like.config) == program_of(config)
        same_data = like and like.config.data.to_dict() == config.data.to_dict()
        self.dataset = like.dataset if same_data else sources.find(config.data)
        num_train = len(self.dataset.train_targets)
        checks.integer(
            "config.batch_size",
            config.batch_size,
            1,
            num_train,
            "the number of training examples",
        )
        num_subset = config_lib.num_subset(config)
        if num_subset:
            checks.integer(
                "config.subspace.subset_size",
                num_subset,
                1,
                num_train,
                "the number of training examples",
            )
        num_test = len(self.dataset.test_targets)
        self.layout.check(config, num_train, num_test, num_subset)
        build = functools.partial(
            build_model,
            config.model,
            self.dataset.train_inputs.shape[1:],
            self.dataset.num_classes,
            config.seed,
            self.dataset.vocab_size,
        )
        self.model_fn, self.params = self.layout.abstract(build)
        self._check_outputs()
        checks.integer(
            "config.subspace.rank",
            config.subspace.rank,
            1,
            basis.size(self.params),
            "the number of parameters",
        )
        self._check_solver()
        self.forecast = self._forecast()
        if config.check_memory:
            forecast_lib.check(self.forecast, jax.local_devices()[0])
        _, self.params = self.layout.born(build)
        self.loss_fn = losses.build(config.loss, self.dataset.num_classes)
        self.task = self._task(like.task if shared else None)
        self._reader = None
        if config.data.streaming:
            inputs, targets = self.dataset.train_inputs, self.dataset.train_targets
            self._reader = Reader(inputs, targets, self.indices, config.eval_every)

    def _forecast(self):
        shapes = [x.shape for x in self.dataset if hasattr(x, "shape")]
        key = program_of(self.config), len(self.arms), f"{self.layout} {shapes}"
        if key not in _FORECASTS:
            _FORECASTS[key] = forecast_lib.forecast(
                self.config, self.layout, self.dataset
            )
        return _FORECASTS[key]

    def _check_outputs(self):
        """Raises where the network has other outputs than the data have targets."""
        inputs = self.dataset.train_inputs
        example = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
        per_example = jax.eval_shape(self.model_fn, self.params, example).ndim - 2
        if per_example != self.dataset.train_targets.ndim - 1:
            ways = "one output per example", "one output per position"
            raise ValueError(
                f"config.model.name is {self.config.model.name!r}, which has "
                f"{ways[per_example]}, but config.data.name = "
                f"{self.config.data.name!r} needs {ways[1 - per_example]}."
            )

    def _check_solver(self):
        """Raises where the solver does not fit the parameters, such as their blocks."""
        space = self.config.subspace
        solver = solvers.build(space)
        try:
            jax.eval_shape(lambda params: solver.init(params, space.rank), self.params)
        except ValueError as error:
            # Arguments of solvers are called as the fields are, but for this one.
            name, _, rest = str(error).partition(" ")
            name = {"by": "blocks"}.get(name, name)
            where = f"config.subspace.{name}" if name in space else "config.subspace:"
            told = rest if name in space else error
            raise ValueError(f"{where} {told}") from None

    @property
    def ends_by_alignment(self) -> bool:
        """Whether the alignment can end the prefix, which then needs a subspace."""
        return self.config.switch.alignment > 0

    @property
    def prefix(self) -> str:
        """Names the prefix: equal for experiments that fork from the same state."""
        if self.ends_by_alignment:
            return _without(self.config, _ALWAYS_AFTER_PREFIX)
        later = [f"subspace.{name}" for name in self.config.subspace]
        # Its rows of metrics depend on these.
        if self.config.measures.sharpness_every:
            later.remove("subspace.mode")
            later.remove("subspace.preconditioned")
        if self.config.data.streaming:
            later.remove("subspace.subset_size")
        return _without(self.config, (*_AFTER_PREFIX, *later))

    def indices(self, first_step: int, num_steps: int | None = None):
        """Examples of steps, by default of one dispatch, int32 `(n, batch_size)`."""
        return batch_indices(
            self.config.seed,
            first_step,
            num_steps or self.config.eval_every,
            len(self.dataset.train_targets),
            self.config.batch_size,
        )

    def start(self, programs: Programs) -> TrainState:
        """The state before the first step."""
        return programs.init(self.params, self.config.seed)

    def feed(self, first_step: int):
        """What `Programs.train` takes of the examples of one dispatch.

        Returns:
          `indices`, or with `config.data.streaming` the `reader.Batches` that
          they stand for, with the examples of each step split over the devices.
        """
        if self._reader is None:
            return self.indices(first_step)
        return self.layout.put_batches(self._reader.read(first_step))

    def close(self):
        """Ends what reads ahead; `feed` starts it anew."""
        if self._reader is not None:
            self._reader.close()

    def scalars(self, arm: arms_lib.Arm | None = None, rate: float | None = None):
        """`Scalars` of an arm, or of the prefix, at another learning rate if given."""
        config = self.config
        if rate is None:
            rate = config.optimizer.learning_rate
        if arm is None:
            return Scalars(
                rate,
                refresh_every=config.switch.measure_every,
                threshold=config.switch.alignment or np.inf,
                seed=config.seed,
            )
        return Scalars(
            rate,
            arm.dominant_scale,
            arm.bulk_scale,
            refresh_every=config.subspace.refresh_every,
            seed=config.seed,
        )

    def _task(self, shared: Task | None) -> Task:
        config = self.config
        set_ = self.dataset
        if shared is None:
            test = self._objective(set_.test_inputs, set_.test_targets)
        else:
            test = shared.test
        curvature = {"batch": None}
        if config_lib.num_subset(config):
            curvature["subset"] = self._subset()
        if config.data.streaming:
            train = curvature["subset"]
        elif shared is None:
            train = self._objective(set_.train_inputs, set_.train_targets)
        else:
            train = shared.train
        curvature["full"] = train
        return Task(
            train, test, curvature[config.subspace.data], len(set_.train_targets)
        )

    def _subset(self) -> Objective:
        set_, size = self.dataset, self.config.subspace.subset_size
        order = np.random.default_rng([self.config.seed, 1])
        chosen = order.permutation(len(set_.train_targets))[:size]
        return self._objective(set_.train_inputs, set_.train_targets, chosen)

    def _objective(self, inputs, targets, order=None):
        return Objective(
            self.model_fn,
            self.loss_fn,
            self.layout.put_examples(inputs, order),
            self.layout.put_examples(targets, order),
            self.config.microbatch_size or None,
            self.layout.num_groups,
        )


def program_of(config) -> str:
    """Names the compiled programs: equal for configs that can share them."""
    return _without(config, _FREE)


def _without(config, fields) -> str:
    """The config as canonical text, without some of its dotted fields."""
    plain = record.plain(config)
    for field in fields:
        *groups, name = field.split(".")
        holder = plain
        for group in groups:
            holder = holder[group]
        holder.pop(name)
    return json.dumps(plain, sort_keys=True)
