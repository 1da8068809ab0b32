"""Every check of a config: of its fields, against its data, and against its network.

What belongs to one optimizer, solver, loss or arm is checked in `from_config`, next to
where it is built, and called from here.
"""

import contextlib

import jax
from ml_collections import ConfigDict

from bulk_sgd import checks
from bulk_sgd.curvature import second_derivatives
from bulk_sgd.curvature.operators import CURVATURES
from bulk_sgd.lab.devices import sharding
from bulk_sgd.lab.from_config import arms, losses, optimizers, solvers
from bulk_sgd.linalg import basis

_CURVATURE_DATA = ("full", "subset", "batch")


def check_fields(config: ConfigDict, reference: ConfigDict, path: str = "config"):
    """Raises ValueError on fields that are unknown, missing, or of another type.

    Args:
      config: the config of an experiment, or a group of it.
      reference: the same with the default of every field.
      path: names it in the error.
    """
    for name in config:
        if name not in reference:
            known = ", ".join(sorted(reference))
            raise ValueError(
                f"{path}.{name} is not a field of the config; known here: {known}."
            )
    for name, value in reference.items():
        field = f"{path}.{name}"
        if name not in config:
            raise ValueError(f"{field} is missing; its default is {value!r}.")
        if isinstance(value, ConfigDict):
            if not isinstance(config[name], ConfigDict):
                raise ValueError(
                    f"{field} is {config[name]!r}; it must be a group of fields."
                )
            check_fields(config[name], value, field)
            continue
        kinds = {float: (float, int), tuple: (tuple, list)}.get(type(value))
        if not isinstance(config[name], kinds or type(value)):
            raise ValueError(
                f"{field} is {config[name]!r}; it must be of type "
                f"{type(value).__name__}, as its default {value!r}."
            )


def check_values(config: ConfigDict):
    """Raises ValueError on values out of range, or that do not go together.

    Args:
      config: as `check_fields` passes it.
    """
    for name, low in (
        ("seed", 0),
        ("batch_size", 1),
        ("num_steps", 1),
        ("eval_every", 1),
        ("microbatch_size", 0),
    ):
        checks.integer(f"config.{name}", config[name], low)
    for name in ("length", "vocab_size"):
        checks.integer(f"config.data.{name}", config.data[name], 0)
    losses.build(config.loss, num_classes=2)  # which refuses an unknown name
    optimizers.validate(config.optimizer)
    if config.model.scan_layers and config.optimizer.name == "muon":
        raise ValueError(
            "config.model.scan_layers is True; with config.optimizer.name 'muon' it "
            "must be False, because Muon orthogonalises matrices, not stacks of them."
        )
    _check_subspace(config)
    _check_switch(config)
    arms.parse_all(config.arms)
    sharding.validate(config.sharding)
    _check_measures(config)
    for name in ("every", "keep"):
        checks.integer(f"config.checkpoint.{name}", config.checkpoint[name], 0)
    _check_stability(config)


def _check_subspace(config):
    space = config.subspace
    checks.integer("config.subspace.rank", space.rank, 1)
    checks.one_of("config.subspace.curvature", space.curvature, CURVATURES)
    if space.preconditioned:
        optimizers.validate_preconditioned(config.optimizer)
    checks.one_of("config.subspace.mode", space.mode, second_derivatives.MODES)
    checks.integer("config.subspace.refresh_every", space.refresh_every, 1)
    checks.one_of("config.subspace.data", space.data, _CURVATURE_DATA)
    if config.data.streaming and space.data == "full":
        raise ValueError(
            "config.subspace.data is 'full'; with config.data.streaming it must be "
            "'subset' or 'batch', because the training set is not on the devices."
        )
    checks.integer("config.subspace.subset_size", space.subset_size, 1)
    solvers.validate(space)


def _check_switch(config):
    switch, space = config.switch, config.subspace
    checks.integer(
        "config.switch.step", switch.step, 0, config.num_steps, "config.num_steps"
    )
    checks.between("config.switch.alignment", switch.alignment, 0, 1)
    checks.between("config.switch.decay", switch.decay, 0, 1, below=True)
    checks.integer("config.switch.measure_every", switch.measure_every, 1)
    intervals = {"subspace.refresh_every": space.refresh_every}
    if switch.alignment > 0:
        intervals["switch.measure_every"] = switch.measure_every
    reason = solvers.every_step(space)
    for name, interval in intervals.items():
        if reason and interval != 1:
            raise ValueError(
                f"config.{name} is {interval}; it must be 1 with "
                f"config.subspace.solver = {space.solver!r}, which {reason}."
            )


def _check_measures(config):
    for name in ("every", "sharpness_every"):
        every = config.measures[name]
        checks.integer(f"config.measures.{name}", every, 0)
        if every % config.eval_every:
            raise ValueError(
                f"config.measures.{name} is {every}; it must be a multiple of "
                f"config.eval_every, {config.eval_every}, or 0."
            )
    checks.integer("config.measures.num_probes", config.measures.num_probes, 2)
    if not config.measures.every:
        return
    for name, needed in {"curvature": "hessian", "preconditioned": False}.items():
        if config.subspace[name] != needed:
            raise ValueError(
                f"config.subspace.{name} is {config.subspace[name]!r}; where "
                f"config.measures.every is not 0 it must be {needed!r}, because the "
                "energies are measured in the subspace of the Hessian."
            )
    if config.subspace.data == "subset":
        why = "config.measures.every compares halves of the subset"
        size = config.subspace.subset_size
        checks.integer("config.subspace.subset_size", size, 2, why=why)


def _check_stability(config):
    stability = config.stability
    checks.integer("config.stability.rounds", stability.rounds, 0)
    if stability.rounds and config.optimizer.schedule != "constant":
        raise ValueError(
            f"config.optimizer.schedule is {config.optimizer.schedule!r}; where "
            "config.stability.rounds is not 0 it must be 'constant', because a rate "
            "that changes after the fork is not one rate that is stable or not."
        )
    checks.integer("config.stability.num_steps", stability.num_steps, 1)
    checks.at_least("config.stability.low", stability.low, 1e-9)
    checks.at_least("config.stability.high", stability.high, stability.low)
    checks.at_least("config.stability.loss_factor", stability.loss_factor, 1)


def num_subset(config) -> int:
    """Number of training examples in the subset on the devices; 0 without a subset.

    Its curvature counts, and where data are read while training, its losses too.
    """
    needed = config.data.streaming or config.subspace.data == "subset"
    return config.subspace.subset_size if needed else 0


def check_data(config, dataset, mesh):
    """Raises ValueError unless the data have enough examples, evenly over the devices.

    Args:
      config: as `check_values` passes it.
      dataset: `data.Dataset`.
      mesh: `jax.sharding.Mesh` of the run.
    """
    num_train, subset = len(dataset.train_targets), num_subset(config)
    sizes = {"batch_size": config.batch_size}
    if subset:
        sizes["subspace.subset_size"] = subset
    why = "the number of training examples"
    for field, size in sizes.items():
        checks.integer(f"config.{field}", size, 1, num_train, why)
    counts = {
        "batch_size": (config.batch_size, "examples"),
        "data.num_test": (len(dataset.test_targets), "test examples"),
        "microbatch_size": (config.microbatch_size, "examples"),
        "subspace.subset_size": (subset, "examples"),
    }
    if not config.data.streaming:  # batches that are read need not come out even
        counts["data.num_train"] = num_train, "training examples"
    for field, (count, what) in counts.items():
        if count % mesh.size:
            sizes = " x ".join(str(size) for size in mesh.shape.values())
            raise ValueError(
                f"config.{field} gives {count} {what}; it must be a multiple of "
                f"{mesh.size}, the devices of the mesh (config.sharding.data "
                f"x config.sharding.fsdp, {sizes})."
            )


def check_network(config, dataset, model_fn, params):
    """Raises ValueError unless the network fits the targets, and the rank the network.

    Args:
      config: as `check_values` passes it.
      dataset: `data.Dataset`.
      model_fn: the network.
      params: its parameters, as shapes.
    """
    inputs = dataset.train_inputs
    example = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    per_example = jax.eval_shape(model_fn, params, example).ndim - 2
    if per_example != dataset.train_targets.ndim - 1:
        ways = "one output per example", "one output per position"
        raise ValueError(
            f"config.model.name is {config.model.name!r}, which has "
            f"{ways[per_example]}, but config.data.name = "
            f"{config.data.name!r} needs {ways[1 - per_example]}."
        )
    checks.integer(
        "config.subspace.rank",
        config.subspace.rank,
        1,
        basis.size(params),
        "the number of parameters",
    )


@contextlib.contextmanager
def naming_fields(space):
    """Names the field of `config.subspace` where a solver refuses its argument."""
    try:
        yield
    except checks.ArgumentError as error:
        # Arguments have the names of the fields, but for this one.
        name = {"by": "blocks"}.get(error.name, error.name)
        if name in space:
            raise ValueError(f"config.subspace.{name} {error.problem}") from None
        raise ValueError(f"config.subspace: {error}") from None
