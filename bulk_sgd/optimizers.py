"""Inner optimizers by name, all of them optax's own."""

import optax

from bulk_sgd import checks

_BUILDERS = {
    "sgd": lambda c: optax.sgd(
        c.learning_rate, momentum=c.momentum or None, nesterov=c.nesterov
    ),
    "adam": lambda c: optax.adam(c.learning_rate),
    "adamw": lambda c: optax.adamw(c.learning_rate, weight_decay=c.weight_decay),
}


def validate(config):
    """Raises ValueError on a field of `config.optimizer` that is out of its range."""
    checks.one_of("config.optimizer.name", config.name, _BUILDERS)
    checks.at_least("config.optimizer.learning_rate", config.learning_rate, 0)
    checks.between("config.optimizer.momentum", config.momentum, 0, 1)
    checks.at_least("config.optimizer.weight_decay", config.weight_decay, 0)


def build(config) -> optax.GradientTransformationExtraArgs:
    """The optax optimizer of `config.optimizer`."""
    return optax.with_extra_args_support(_BUILDERS[config.name](config))
