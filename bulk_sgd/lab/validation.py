"""Checks of a config: of its fields, and against the number of its examples.

What belongs to one optimizer, solver, loss or arm is checked in `from_config`, next to
where it is built, and called from here.
"""

import functools
import json

from ml_collections import ConfigDict

from bulk_sgd import checks
from bulk_sgd.curvature import second_derivatives
from bulk_sgd.curvature.hessian import CURVATURES
from bulk_sgd.lab import plugins
from bulk_sgd.lab.devices import sharding
from bulk_sgd.lab.files import loggers
from bulk_sgd.lab.from_config import arms, losses, optimizers, solvers


def check_fields(config: ConfigDict, reference: ConfigDict, path: str = "config"):
    """Raises ValueError on fields that are unknown, missing, or of another type."""
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
            if name == "options":
                _check_options(field, config[name])
            else:
                check_fields(config[name], value, field)
            continue
        kinds = {float: (float, int), tuple: (tuple, list)}.get(type(value))
        if not isinstance(config[name], kinds or type(value)):
            raise ValueError(
                f"{field} is {config[name]!r}; it must be of type "
                f"{type(value).__name__}, as its default {value!r}."
            )


# Groups whose `options` are a user's own fields.
OPEN = ("data", "model", "loss", "optimizer", "subspace", "measures")


def _check_options(field, options):
    try:
        json.dumps(options.to_dict())
    except TypeError as error:
        raise ValueError(
            f"{field} holds what its record cannot ({error}); it must hold numbers, "
            "strings, booleans, and tuples and groups of them."
        ) from None


def check_values(config: ConfigDict):
    """Raises ValueError on values out of range, or that do not go together."""
    for check, fields in _RANGES.items():
        for path, bounds in fields.items():
            value = functools.reduce(ConfigDict.__getitem__, path.split("."), config)
            check(f"config.{path}", value, *bounds)
    losses.build(config.loss, num_classes=2)  # which refuses an unknown name
    optimizers.validate(config.optimizer)
    solvers.validate(config.subspace)
    arms.parse_all(config.arms)
    loggers.check(config)
    sharding.validate(config.sharding)
    _check_pairs(config)
    _check_guarded(config)
    _check_every_step(config)
    _check_measures(config)


# What a field may be by itself, whatever the others are.
_RANGES = {
    checks.integer: {
        "seed": (0,),
        "batch_size": (1,),
        "num_steps": (1,),
        "eval_every": (1,),
        "microbatch_size": (0,),
        "data.length": (0,),
        "data.vocab_size": (0,),
        "optimizer.diagonal_every": (1,),
        "optimizer.warmup_steps": (0,),
        "subspace.rank": (1,),
        "subspace.refresh_every": (1,),
        "subspace.subset_size": (1,),
        "subspace.probe_every": (1,),
        "switch.measure_every": (1,),
        "measures.every": (0,),
        "measures.sharpness_every": (0,),
        "measures.step_every": (0,),
        "measures.num_probes": (2,),
        "checkpoint.every": (0,),
        "checkpoint.keep": (0,),
        "stability.rounds": (0,),
        "stability.num_steps": (1,),
    },
    checks.at_least: {
        "optimizer.learning_rate": (0,),
        "optimizer.eps": (0,),
        "optimizer.gamma": (0,),
        "optimizer.weight_decay": (0,),
        "optimizer.rho": (0,),
        "optimizer.final_scale": (0,),
        "optimizer.decay": (0,),
        "checkpoint.ends": (0,),
        "subspace.threshold": (0,),
        "stability.low": (1e-9,),
        "stability.loss_factor": (1,),
    },
    checks.between: {
        "optimizer.momentum": (0, 1),
        "optimizer.b1": (0, 1, True),
        "optimizer.b2": (0, 1, True),
        "subspace.drift": (0, 1),
        "switch.alignment": (0, 1),
        "switch.decay": (0, 1, True),
        "subspace.batch_fraction": (1e-6, 1),
    },
    checks.one_of: {
        "subspace.curvature": (CURVATURES,),
        "subspace.mode": (second_derivatives.MODES,),
        "subspace.data": (("full", "subset", "batch"),),
        "switch.gradient": (("update", "full"),),
    },
}


def _check_pairs(config):
    """Raises ValueError on values that exclude one another."""
    space, stability = config.subspace, config.stability
    most = config.num_steps, "config.num_steps"
    checks.integer("config.switch.step", config.switch.step, 0, *most)
    checks.at_least("config.stability.high", stability.high, stability.low)
    if space.preconditioned:
        optimizers.validate_preconditioned(config.optimizer)
    if config.model.scan_layers and config.optimizer.name == "muon":
        raise ValueError(
            "config.model.scan_layers is True; with config.optimizer.name 'muon' it "
            "must be False, because Muon orthogonalises matrices, not stacks of them."
        )
    if config.data.streaming and space.data == "full":
        raise ValueError(
            "config.subspace.data is 'full'; with config.data.streaming it must be "
            "'subset' or 'batch', because the training set is not on the devices."
        )
    if stability.rounds and config.optimizer.schedule != "constant":
        raise ValueError(
            f"config.optimizer.schedule is {config.optimizer.schedule!r}; where "
            "config.stability.rounds is not 0 it must be 'constant', because a rate "
            "that changes after the fork is not one rate that is stable or not."
        )


def _check_guarded(config):
    for arm in arms.parse_all(config.arms):
        if not arm.guarded:
            continue
        if min(arm.dominant_scale, arm.bulk_scale) < 0:
            raise ValueError(
                f"config.arms has {arm.name!r}; its scales must be at least 0."
            )
        if not solvers.finds_leading(config.subspace):
            raise ValueError(
                f"config.arms has {arm.name!r}, whose guard needs eigenvalues of the "
                "whole curvature; config.subspace.solver must find them, and "
                "config.subspace.blocks must be ''."
            )


def _check_every_step(config):
    reason = solvers.every_step(config.subspace)
    intervals = {"subspace.refresh_every": config.subspace.refresh_every}
    if config.switch.alignment > 0:
        intervals["switch.measure_every"] = config.switch.measure_every
    for name, interval in intervals.items():
        if reason and interval != 1:
            raise ValueError(
                f"config.{name} is {interval}; it must be 1 with "
                f"config.subspace.solver = {config.subspace.solver!r}, which {reason}."
            )


def _check_measures(config):
    measures, space = config.measures, config.subspace
    for path in measures.own:
        field = "config.measures.own"
        if not isinstance(path, str):
            raise ValueError(
                f"{field} has {path!r}; it must be import paths, 'module:name'."
            )
        plugins.entry(field, path, {}, functools.partial(plugins.load, field))
    taken = set().union(*(plugins.taken(field, path) for path in measures.own))
    if unknown := sorted({*measures.options} - taken):
        raise ValueError(
            f"config.measures.options has {', '.join(unknown)}, but no function in "
            f"config.measures.own, {measures.own!r}, takes this argument."
        )
    if len({path.rpartition(":")[2] for path in measures.own}) < len(measures.own):
        raise ValueError(
            f"config.measures.own is {measures.own!r}; it must name each function once."
        )
    for name in ("every", "sharpness_every", "step_every"):
        if measures[name] % config.eval_every:
            raise ValueError(
                f"config.measures.{name} is {measures[name]}; it must be a multiple of "
                f"config.eval_every, {config.eval_every}, or 0."
            )
    if measures.step_every and space.preconditioned:
        raise ValueError(
            "config.subspace.preconditioned is True; with config.measures.step_every "
            "it must be False, because the parts of an update must be orthogonal."
        )
    if not measures.every:
        return
    if space.curvature != "hessian":
        raise ValueError(
            f"config.subspace.curvature is {space.curvature!r}; where "
            "config.measures.every is not 0 it must be 'hessian', because the energies "
            "are measured in the subspace of the Hessian."
        )
    if space.data == "subset":
        why = "config.measures.every compares halves of the subset"
        checks.integer("config.subspace.subset_size", space.subset_size, 2, why=why)


def num_subset(config) -> int:
    """Number of training examples in the subset on the devices; 0 without a subset.

    Its curvature counts, and where data are read while training, its losses too.
    """
    needed = config.data.streaming or config.subspace.data == "subset"
    return config.subspace.subset_size if needed else 0


def num_curved(config) -> int:
    """Number of examples of a batch whose curvature counts, if it is the batch's."""
    if config.subspace.data != "batch":
        return config.batch_size
    return max(1, round(config.subspace.batch_fraction * config.batch_size))


def check_data(config, dataset, mesh):
    """Raises ValueError unless there are enough examples, evenly over the devices."""
    num_train, subset = len(dataset.train_targets), num_subset(config)
    sizes = {"batch_size": config.batch_size}
    if subset:
        sizes["subspace.subset_size"] = subset
    why = "the number of training examples"
    for field, size in sizes.items():
        checks.integer(f"config.{field}", size, 1, num_train, why)
    counts = {
        "batch_size": (config.batch_size, "examples"),
        "subspace.batch_fraction": (num_curved(config), "examples"),
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
