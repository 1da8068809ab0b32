"""Whether the network, the data, the loss and the rank of a config go together.

The checks read only shapes and labels, so they compile nothing.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from bulk_sgd import checks
from bulk_sgd.lab import plugins
from bulk_sgd.lab.from_config import arms, losses, solvers
from bulk_sgd.linalg import basis


def check_network(config, dataset, model_fn, loss_fn, params):
    """Raises ValueError unless network, targets, loss and rank go together."""
    targets = _one(dataset.train_targets)
    outputs = _outputs(config, dataset, model_fn, params)
    whole = jnp.issubdtype(targets.dtype, jnp.integer)
    if not whole and not plugins.is_path(config.loss.name):
        raise ValueError(
            f"config.loss.name is {config.loss.name!r}, which takes integer labels; "
            f"those of config.data.name = {config.data.name!r} are {targets.dtype}."
        )
    _check_outputs(config, dataset, outputs, targets, whole)
    with plugins.telling("config.loss.name", config.loss.name):
        found = jax.eval_shape(loss_fn, outputs, targets)
    _check_losses(config, outputs, targets, found)
    losses.check_mean(config.loss, loss_fn, outputs, targets)
    most = basis.size(params), "the number of parameters"
    checks.integer("config.subspace.rank", config.subspace.rank, 1, *most)


def _one(examples):
    return jax.ShapeDtypeStruct((1, *examples.shape[1:]), examples.dtype)


def _outputs(config, dataset, model_fn, params):
    """What the network returns for one example, as shapes."""
    with plugins.telling("config.model.name", config.model.name):
        return jax.eval_shape(model_fn, params, _one(dataset.train_inputs))


def _check_outputs(config, dataset, outputs, targets, whole):
    """Raises ValueError unless the outputs for one example fit its target."""
    name = f"config.model.name is {config.model.name!r}, which"
    if not isinstance(outputs, jax.ShapeDtypeStruct):
        kind = type(outputs).__name__
        raise ValueError(f"{name} returns a {kind}; it must return one array.")
    axes = len(targets.shape) + 1 if whole else max(1, outputs.ndim)
    if outputs.ndim != axes or outputs.shape[0] != 1:
        needed = f"{(*targets.shape, dataset.num_classes)}, one per example"
        if targets.ndim > 1:
            needed = needed.replace("example", "position")
        raise ValueError(
            f"{name} has outputs of shape {outputs.shape} for one example, but "
            f"config.data.name = {config.data.name!r} needs "
            f"{needed if whole else 'a first axis of examples'}."
        )
    # The outputs for a loss of one's own may be other things than classes.
    own = plugins.is_path(config.loss.name)
    narrow = not own and _narrow(config, dataset, outputs.shape[-1])
    if narrow:
        raise ValueError(f"{narrow}.")


def _narrow(config, dataset, width: int) -> str:
    """Says that the outputs are fewer than the classes; empty if they are not."""
    labels = _labels(dataset)
    largest = max([dataset.num_classes - 1, *(int(part.max()) for part in labels)])
    return (width <= largest) * (
        f"config.model.name is {config.model.name!r}, which has {width} "
        f"output{'s' * (width != 1)}, but the labels of config.data.name = "
        f"{config.data.name!r} go up to {largest}"
    )


def _check_losses(config, outputs, targets, found):
    """Raises ValueError if there are more losses than positions of one example."""
    shape = getattr(found, "shape", None)
    most = max(1, outputs.ndim - 1)
    if shape is None or len(shape) > most or shape[:1] not in ((), (1,)):
        got = type(found).__name__ if shape is None else f"losses of shape {shape}"
        raise ValueError(
            f"config.loss.name is {config.loss.name!r}, which returns {got} for "
            f"outputs of shape {outputs.shape} and targets of shape {targets.shape}, "
            "of one example; it must return one loss per example or per position, or "
            "their mean."
        )


def _labels(dataset) -> list[np.ndarray]:
    """The labels of the training and the test examples, if they are in memory."""
    parts = dataset.train_targets, dataset.test_targets
    known = [isinstance(x, np.ndarray) and x.dtype.kind in "iu" for x in parts]
    return list(parts) if all(known) else []


def doubts(config, dataset, model_fn, params) -> list[str]:
    """Sentences about settings that are allowed but may be mistakes."""
    found = []
    labels = [set(np.unique(part).tolist()) for part in _labels(dataset)]
    if labels and (absent := {*range(dataset.num_classes)} - labels[0]):
        tested = sorted(absent & labels[1])
        found.append(
            f"config.data.name is {config.data.name!r}: labels go from 0 to "
            f"{dataset.num_classes - 1}, but no training example has label "
            f"{_listed(sorted(absent))}"
            + f"; test examples have {_listed(tested)}" * bool(tested)
            + "."
        )
    if plugins.is_path(config.loss.name):
        found += _doubt_outputs(config, dataset, model_fn, params)
    return found + config_doubts(config)


def config_doubts(config) -> list[str]:
    """Those of `doubts` that need the config alone."""
    switch = config.switch
    if switch.step == config.num_steps and switch.alignment == 0:
        return [
            f"config.num_steps and config.switch.step are both {config.num_steps}: the "
            "run ends at its fork, and no arm takes a step."
        ]
    return _idle(config)


def _doubt_outputs(config, dataset, model_fn, params) -> list[str]:
    """A sentence, if a loss of one's own has fewer outputs than there are classes."""
    width = _outputs(config, dataset, model_fn, params).shape[-1]
    whole = jnp.issubdtype(dataset.train_targets.dtype, jnp.integer)
    # A single output is a score; it has no accuracy.
    narrow = whole and width > 1 and _narrow(config, dataset, width)
    if not narrow:
        return []
    meant = "config.loss.name must be for such outputs"
    return [f"{narrow}: the accuracy means nothing, and {meant}."]


def _idle(config) -> list[str]:
    """A doubt if the guard of an arm waits for matvecs until the run ends."""
    guarded = [arm.name for arm in arms.parse_all(config.arms) if arm.guarded]
    space, left = config.subspace, config.num_steps - config.switch.step
    if not guarded or not left or config.switch.alignment:
        return []
    refreshes, each = -(-left // space.refresh_every), solvers.usual_matvecs(space)
    sweeps = solvers.build(space).sweeps
    # Whatever `every` is, `streaming` acts at each refresh until these are spent.
    if refreshes * each >= sweeps * space.rank:
        return []
    every, begin = space.refresh_every, config.switch.step
    cures = [
        *[f"lower config.subspace.refresh_every, {every}"] * (every > 1),
        *[f"lower config.switch.step, {begin}"] * (begin > 0),
        f"raise config.num_steps, {config.num_steps}",
    ]
    return [
        f"config.arms has {guarded[0]!r}, which is plain until {sweeps * space.rank} "
        f"matvecs are spent, {sweeps} per vector, but its {refreshes} refreshes take "
        f"about {refreshes * each}: {' or '.join(cures)}."
    ]


def _listed(values) -> str:
    """The first few values, and how many there are.

    >>> _listed([1, 2]), _listed([*range(9)])
    ('1, 2', '0, 1, 2, … (9)')
    """
    if len(values) <= 5:
        return ", ".join(map(str, values))
    return f"{', '.join(map(str, values[:3]))}, … ({len(values)})"


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
