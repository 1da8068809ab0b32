"""Inner optimizers by name, all of them optax's own."""

import optax
from optax import contrib

from bulk_sgd import checks


def _sgd(config, rate):
    momentum = config.momentum or None
    return optax.sgd(rate, momentum=momentum, nesterov=config.nesterov)


def _sam(config, rate):
    # Opaque: one step is one update, with the second gradient inside it.
    ascent = optax.chain(contrib.normalize(), optax.sgd(config.rho))
    return contrib.sam(_sgd(config, rate), ascent, opaque_mode=True)


_BUILDERS = {
    "sgd": _sgd,
    "adam": lambda config, rate: optax.adam(rate),
    "adamw": lambda config, rate: optax.adamw(rate, weight_decay=config.weight_decay),
    "sam": _sam,
    "muon": lambda config, rate: contrib.muon(
        rate, beta=config.momentum, nesterov=config.nesterov
    ),
}
PROJECTIONS = ("update", "gradient")


def validate(config):
    """Raises ValueError on a field of `config.optimizer` that is out of its range."""
    checks.one_of("config.optimizer.name", config.name, _BUILDERS)
    checks.at_least("config.optimizer.learning_rate", config.learning_rate, 0)
    checks.between("config.optimizer.momentum", config.momentum, 0, 1)
    checks.at_least("config.optimizer.weight_decay", config.weight_decay, 0)
    checks.at_least("config.optimizer.rho", config.rho, 0)
    checks.one_of("config.optimizer.projection", config.projection, PROJECTIONS)
    if config.name == "sam" and config.projection == "gradient":
        raise ValueError(
            "config.optimizer.projection is 'gradient'; with config.optimizer.name "
            "'sam' it must be 'update', for SAM's step follows a second gradient."
        )


def build(config, learning_rate) -> optax.GradientTransformationExtraArgs:
    """The optax optimizer of `config.optimizer`, at a rate that may be traced.

    Its `update` takes `grad_fn(params, i)`, a further gradient of the batch, for SAM.
    """
    return optax.with_extra_args_support(_BUILDERS[config.name](config, learning_rate))
