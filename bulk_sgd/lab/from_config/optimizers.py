"""Where `config.optimizer` becomes an optax optimizer and a schedule of its rate."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from optax import contrib

from bulk_sgd import checks
from bulk_sgd.curvature import optimizer_states
from bulk_sgd.lab import plugins
from bulk_sgd.transforms.accelerated import THRESHOLD


class _Kind(NamedTuple):
    """One optimizer."""

    build: Callable  # from `config.optimizer`, the learning rate and a PRNG key
    # P from `config.optimizer` and the state, or the reason why it has none.
    preconditioner: Callable | str
    extra_args: Callable = lambda c, loss: {}  # of its update, from the batch loss


def _sgd(config, rate, _=None):
    momentum = config.momentum or None
    return optax.sgd(rate, momentum=momentum, nesterov=config.nesterov)


def _sam(config, rate, key):
    # Opaque: one step is one update, with the second gradient inside it.
    ascent = optax.chain(contrib.normalize(), optax.sgd(config.rho))
    return contrib.sam(_sgd(config, rate), ascent, opaque_mode=True)


def _decayed(make):
    """The optimizer with weight decay beside it, as in AdamW, where optax has none."""

    def build(config, rate, key):
        optimizer = make(config, rate, key)
        if not config.weight_decay:
            return optimizer
        decay = optax.add_decayed_weights(-rate * config.weight_decay)
        return optax.chain(optimizer, decay)

    return build


def _adamw(config, rate, _):
    betas = config.b1, config.b2
    return optax.adamw(rate, *betas, config.eps, weight_decay=config.weight_decay)


def _muon(config, rate, _):
    return contrib.muon(
        rate,
        beta=config.momentum,
        nesterov=config.nesterov,
        eps=config.eps,
        weight_decay=config.weight_decay,
        # For parameters that are no matrices.
        adam_b1=config.b1,
        adam_b2=config.b2,
        adam_weight_decay=config.weight_decay,
    )


def _sophia(config, rate, key):
    return contrib.sophia(
        rate,
        config.b1,
        config.b2,
        config.eps,
        config.weight_decay,
        gamma=config.gamma,
        update_interval=config.diagonal_every,
        hessian_diagonal_fn=contrib.hutchinson_estimator_diag_hessian(key),
    )


def _of_adam(config, state):
    return optimizer_states.adam_preconditioner(state, config.b1, config.b2, config.eps)


def _of_muon(config, state):
    return optimizer_states.muon_preconditioner(
        state, eps=config.eps, adam_b1=config.b1, adam_b2=config.b2
    )


_OPTIMIZERS = {
    "sgd": _Kind(_decayed(_sgd), "SGD has none"),
    "adam": _Kind(lambda c, rate, _: optax.adam(rate, c.b1, c.b2, c.eps), _of_adam),
    "adamw": _Kind(_adamw, _of_adam),
    "sam": _Kind(
        _decayed(_sam),
        "SAM has none",
        lambda c, loss: {"grad_fn": lambda params, _: jax.grad(loss)(params)},
    ),
    "muon": _Kind(_muon, _of_muon),
    "sophia": _Kind(
        _sophia,
        "Sophia clips its steps, so most coordinates do not follow its preconditioner",
        lambda c, loss: {"obj_fn": loss},
    ),
}


def _kind(config) -> _Kind:
    return plugins.entry("config.optimizer.name", config.name, _OPTIMIZERS, _own)


def _own(path):
    """A function of the rate that returns a transform, or a pair of it and a function.

    The latter makes the keyword arguments of the update from the loss of the batch.
    """

    def make(config, rate, key):
        given = {"learning_rate": rate, "key": key}
        made = plugins.call("config.optimizer.name", path, config.options, **given)
        pair = made if type(made) is tuple else (made, lambda loss: {})
        if not isinstance(pair[0], optax.GradientTransformation):
            raise plugins.PluginError(
                f"config.optimizer.name is {path!r}, which returns {made!r}; it must "
                "return an optax transform, or a pair of it and a function."
            )
        return pair

    return _Kind(
        _decayed(lambda config, rate, key: make(config, rate, key)[0]),
        "that of your own is not known",
        lambda config, loss: make(config, config.learning_rate, None)[1](loss),
    )


PROJECTIONS = ("update", "gradient")
SCHEDULES = ("constant", "linear", "cosine", "step")


def validate(config):
    """Raises ValueError where the optimizer's name and other fields do not agree."""
    _kind(config)
    checks.one_of("config.optimizer.projection", config.projection, PROJECTIONS)
    _validate_schedule(config)
    if config.name == "sam" and config.projection == "gradient":
        raise ValueError(
            "config.optimizer.projection is 'gradient'; with config.optimizer.name "
            "'sam' it must be 'update', because SAM's step follows a second gradient."
        )
    if config.name == "adam" and config.weight_decay:
        raise ValueError(
            f"config.optimizer.weight_decay is {config.weight_decay}; with "
            "config.optimizer.name 'adam' it must be 0: 'adamw' is Adam with it."
        )


def validate_preconditioned(config):
    """Raises ValueError unless the optimizer has a preconditioner."""
    field = "config.subspace.preconditioned is True; it must be False with"
    reason = _kind(config).preconditioner
    if isinstance(reason, str):
        raise ValueError(
            f"{field} config.optimizer.name {config.name!r}, because it needs the "
            f"preconditioner of 'adam', 'adamw' or 'muon': {reason}."
        )
    if config.projection == "gradient":
        raise ValueError(
            f"{field} config.optimizer.projection 'gradient': the optimizer's "
            "preconditioner is known only once it has seen the gradient."
        )


def preconditioner(config, state):
    """P of the last update θ ← θ − η P⁻¹ m, for an optimizer that has one."""
    return _kind(config).preconditioner(config, state)


def build(config, learning_rate, seed=0) -> optax.GradientTransformationExtraArgs:
    """The optax optimizer of `config.optimizer`.

    Args:
      config: a validated `config.optimizer`.
      learning_rate: η of the step at hand, maybe traced; see `rate_at`.
      seed: of random vectors in the state that `init` returns, maybe traced.

    Returns:
      An optimizer. `update` passes it the arguments that it needs.
    """
    key = jax.random.PRNGKey(seed)  # not a typed one, for the sake of checkpoints
    return optax.with_extra_args_support(
        _kind(config).build(config, learning_rate, key)
    )


def update(config, learning_rate, loss, state, params, gradient):
    """The update that the optimizer makes from a gradient, and its new state.

    `loss` is the loss of the batch.
    """
    optimizer, more = build(config, learning_rate), _kind(config).extra_args
    return optimizer.update(gradient, state, params, **more(config, loss))


def rate_at(config, learning_rate, step):
    """The learning rate, maybe traced, of the step after `step` others.

    It is `learning_rate` itself where it stays constant.
    """
    if config.schedule == "constant" and not config.warmup_steps:
        return learning_rate
    return learning_rate * _schedule(config)(step)


def stability_threshold(config, preconditioned: bool) -> float | None:
    """The largest ηλ_1 at which full-batch steps on a quadratic do not diverge.

    It is None if unknown, as for Muon, whose P grows with its momentum. If
    `preconditioned`, λ_1 belongs to the preconditioned Hessian. The value for SGD with
    (Nesterov) momentum is from Cohen et al., *Gradient Descent on Neural Networks
    Typically Occurs at the Edge of Stability*, arXiv 2103.00065. Adam's is from their
    *Adaptive Gradient Methods at the Edge of Stability*, arXiv 2207.14484.
    """
    if preconditioned:
        known = config.name in ("adam", "adamw")
        return (2 + 2 * config.b1) / (1 - config.b1) if known else None
    if config.name != "sgd":
        return None
    threshold = 2 + 2 * config.momentum
    return threshold / (1 + 2 * config.momentum) if config.nesterov else threshold


def batch_stability_threshold(config) -> float | None:
    """The level where η times the batch sharpness of small batches settles, or None.

    It is 2 for SGD (Andreyev and Beneventano, *Edge of Stochastic Stability*,
    arXiv 2412.20553), 2 (1 − β) with momentum β, and None if unknown. For large batches
    it is `stability_threshold` (Andreyev et al., *Momentum Further Constrains Sharpness
    at the Edge of Stochastic Stability*, arXiv 2604.14108).
    """
    if config.name != "sgd" or config.nesterov:
        return None
    return 2 - 2 * config.momentum


def guard_threshold(config, preconditioned: bool) -> float:
    """The largest ηλ_1 of a scaled step of a guarded arm, as in `accelerated`.

    It is the threshold of the full batch, but at most the default of `accelerated`.
    Momentum on mini-batches has a far lower one. It bounds their sharpness instead of
    λ_1, and plain runs pass it unharmed.
    """
    known = stability_threshold(config, preconditioned) or THRESHOLD
    return min(THRESHOLD, known)


def _schedule(config) -> optax.Schedule:
    warmup, length = config.warmup_steps, config.decay_steps - config.warmup_steps
    after = {
        "constant": lambda: optax.constant_schedule(1.0),
        "linear": lambda: optax.linear_schedule(1.0, config.final_scale, length),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, length, config.final_scale),
        "step": lambda: optax.piecewise_constant_schedule(
            1.0, {step - warmup: config.decay for step in config.boundaries}
        ),
    }[config.schedule]()
    if not warmup:
        return after
    rise = optax.linear_schedule(0.0, 1.0, warmup)
    return optax.join_schedules([rise, after], [warmup])


def _validate_schedule(config):
    checks.one_of("config.optimizer.schedule", config.schedule, SCHEDULES)
    if config.schedule in ("linear", "cosine"):
        why = f"the warm-up ends before; config.optimizer.schedule {config.schedule!r}"
        low = config.warmup_steps + 1
        checks.integer("config.optimizer.decay_steps", config.decay_steps, low, why=why)
    if config.schedule == "step":
        steps = config.warmup_steps, *config.boundaries
        ascending = all(isinstance(step, int) for step in steps) and all(
            low < high for low, high in itertools.pairwise(steps)
        )
        if not (config.boundaries and ascending):
            raise ValueError(
                f"config.optimizer.boundaries is {config.boundaries!r}; with "
                "config.optimizer.schedule 'step' it must be an ascending tuple of "
                f"steps above {config.warmup_steps} (config.optimizer.warmup_steps)."
            )
