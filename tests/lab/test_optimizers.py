"""Optimizers and schedules of a run, against loops of optax written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import flat
from optimizer_runs import (
    ADAM,
    CASES,
    OPTIMIZERS,
    RATE,
    assert_equal_runs,
    by_hand,
    make_config,
    no_extra,
    run,
    scale_parts,
)

from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.from_config import optimizers
from bulk_sgd.lab.training.experiment import Experiment

# Both projections, and each way in which optimizers differ.
EVERY_DAY = [
    ("momentum", "gradient"),
    *((name, "update") for name in ("sgd", "adam", "sam", "muon", "sophia")),
]


@pytest.mark.parametrize(
    ("name", "where"),
    [
        case if case in EVERY_DAY else pytest.param(*case, marks=pytest.mark.slow)
        for case in CASES
    ],
)
def test_a_run_is_a_loop_of_optax(data_file, name, where):
    fields, optimizer, extra = OPTIMIZERS[name]
    made, *ran = run(make_config(data_file, projection=where, **fields))
    assert_equal_runs(made, *ran, *by_hand(made, optimizer, where, extra))


def hand_schedules():
    half = lambda t: 0.5 * (1 + np.cos(np.pi * t))
    ramp = lambda n: lambda s: min(s / n, 1) if n else 1
    return {
        "warm-up": ({"warmup_steps": 4}, ramp(4)),
        "linear": (
            {"schedule": "linear", "decay_steps": 10, "final_scale": 0.2},
            lambda s: 1 - 0.8 * min(s / 10, 1),
        ),
        "cosine": (
            {"schedule": "cosine", "decay_steps": 10, "warmup_steps": 4},
            lambda s: ramp(4)(s) if s < 4 else half(min((s - 4) / 6, 1)),
        ),
        "step": (
            {
                "schedule": "step",
                "boundaries": (5, 8),
                "decay": 0.5,
                "warmup_steps": 2,
            },
            lambda s: ramp(2)(s) * 0.5 ** ((s >= 5) + (s >= 8)),
        ),
    }


@pytest.mark.parametrize("name", hand_schedules())
def test_schedules_are_their_formulas(name):
    changes, formula = hand_schedules()[name]
    fields = config_lib.default().optimizer
    fields.update(changes)
    optimizers.validate(fields)
    rates = [float(optimizers.rate_at(fields, 0.3, step)) for step in range(13)]
    np.testing.assert_allclose(rates, [0.3 * formula(s) for s in range(13)], atol=1e-7)


def test_without_a_schedule_the_rate_is_the_number_itself():
    assert optimizers.rate_at(config_lib.default().optimizer, RATE, 7) is RATE


def test_a_run_follows_its_schedule(data_file):
    changes = {"schedule": "cosine", "decay_steps": 10, "warmup_steps": 4}
    fields = {"name": "adamw", "weight_decay": 0.3, **ADAM}
    schedule = optax.warmup_cosine_decay_schedule(0.0, RATE, 4, 10)
    optimizer = optax.adamw(schedule, 0.8, 0.9, 1e-3, weight_decay=0.3)
    made, state, trace = run(make_config(data_file, **fields, **changes))
    expected = by_hand(made, optimizer, "update", no_extra, scale_or_zero)
    assert_equal_runs(made, state, trace, *expected)


def scale_or_zero(vector, hessian, state):
    del state  # the first update of a warm-up is zero
    scaled, chi = scale_parts(vector, hessian) if any_of(vector) else (vector, 0.0)
    return scaled, chi


def any_of(vector):
    return np.any(flat(vector))


def grows(name, eta_times_lambda, steps=100, **fields):
    """Whether an optimizer leaves the minimum of ½ λ x² at a rate in units of 1/λ."""
    config = config_lib.default().optimizer
    config.update(name=name, **fields)
    optimizer = optimizers.build(config, eta_times_lambda)
    params, state = jnp.ones(1), optimizer.init(jnp.ones(1))
    update = jax.jit(optimizer.update)
    for _ in range(steps):
        updates, state = update(params, state, params)
        params = params + updates
    return not abs(float(params[0])) <= 1  # also where it is no number any more


@pytest.mark.parametrize(
    "fields", [{}, {"momentum": 0.9}, {"momentum": 0.5, "nesterov": True}]
)
def test_sgd_is_stable_up_to_its_threshold(fields):
    config = config_lib.default().optimizer
    config.update(fields)
    threshold = optimizers.stability_threshold(config, preconditioned=False)
    assert not grows("sgd", 0.97 * threshold, **fields)
    assert grows("sgd", 1.03 * threshold, **fields)


def test_adam_with_its_preconditioner_held_is_stable_up_to_its_threshold():
    config = config_lib.default().optimizer
    config.name = "adam"
    threshold = optimizers.stability_threshold(config, preconditioned=True)
    assert threshold == pytest.approx(38)
    assert optimizers.stability_threshold(config, preconditioned=False) is None

    def radius(rate):  # of (m, x) → (βm + (1 − β)x, x − rate · m), λ = P = 1
        average = np.array([[0.9, 0.1], [0, 1]])
        move = np.array([[1, 0], [-rate, 1]])
        return abs(np.linalg.eigvals(move @ average)).max()

    assert radius(0.99 * threshold) < 1 + 1e-12 < radius(1.01 * threshold)


def test_seeds_draw_other_signs_for_sophia(data_file):
    config = make_config(data_file, name="sophia")
    made = Experiment(config)
    states = [made.programs.init(made.params, seed).inner for seed in (0, 1, 1)]
    first, second, again = map(flat, states)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(second, again)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adam", "weight_decay": 0.1}, r"weight_decay is 0\.1; .*'adamw' is"),
        ({"name": "sam", "projection": "gradient"}, r"projection is 'gradient'; .*SAM"),
        ({"schedule": "cosine"}, r"decay_steps is 0; it must be at least 1"),
        (
            {"schedule": "linear", "warmup_steps": 5, "decay_steps": 5},
            r"decay_steps is 5; it must be at least 6 \(the warm-up ends before",
        ),
        ({"schedule": "step"}, r"boundaries is \(\); .*steps above 0"),
        (
            {"schedule": "step", "boundaries": (4, 9), "warmup_steps": 4},
            r"boundaries is \(4, 9\); .*ascending.*above 4",
        ),
        ({"schedule": "step", "boundaries": (9, 8)}, r"boundaries is \(9, 8\)"),
    ],
)
def test_fields_that_do_not_fit_together_are_named(changes, message):
    config = config_lib.default()
    config.optimizer.update(changes)
    with pytest.raises(ValueError, match=rf"^config\.optimizer\.{message}"):
        config_lib.validate(config)
