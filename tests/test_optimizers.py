"""Optimizers and schedules of a run, against loops of optax written by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from optax import contrib

from bulk_sgd import config as config_lib
from bulk_sgd import experiment, optimizers, steps

RATE, RANK, STEPS, SCALES, SEED = 0.05, 2, 12, (0.25, 1.5), 3
# Adam at its default eps takes the sign of gradients that are rounding errors.
ADAM = {"b1": 0.8, "b2": 0.9, "eps": 1e-3}


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    """24 examples of 5 numbers in 3 classes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = rng.standard_normal((24, 5)).astype(np.float32)
        arrays[f"y_{part}"] = np.arange(24) % 3
    path = tmp_path_factory.mktemp("data") / "numbers.npz"
    np.savez(path, **arrays)
    return str(path)


def make_config(data_file, **optimizer):
    config = config_lib.default()
    config.data.name, config.data.normalization = data_file, "none"
    config.model.hidden = (4,)
    config.seed = SEED
    config.batch_size = 4
    config.num_steps = config.switch.step = config.eval_every = STEPS
    config.optimizer.learning_rate = RATE
    config.optimizer.update(optimizer)
    config.subspace.rank, config.subspace.tol = RANK, 1e-5
    config.arms = (f"scales{SCALES}",)
    return config


def run(config):
    """What the programs of a config make of its first steps."""
    made = experiment.Experiment(config)
    programs = steps.Programs(config)
    state, trace = programs.train(
        made.start(programs),
        made.task,
        made.indices(0),
        STEPS,
        made.scalars(made.arms[0]),
        projected=True,
    )
    assert int(state.subspace.failed_refreshes) == 0
    return made, state, trace


def scale_parts(vector, hessian):
    """a P u + b (u − P u) by a dense decomposition in float64, and χ."""
    flat, unravel = ravel_pytree(vector)
    flat = np.asarray(flat, np.float64)
    basis = np.linalg.eigh(np.asarray(hessian, np.float64))[1][:, -RANK:]
    inside = basis @ (basis.T @ flat)
    scaled = SCALES[0] * inside + SCALES[1] * (flat - inside)
    chi = np.linalg.norm(inside) / np.linalg.norm(flat)
    return unravel(jnp.asarray(scaled, jnp.float32)), chi


def by_hand(made, optimizer, where, extra, scale=scale_parts):
    """Parameters at the end and χ of each step, the loss and the scales spelt out."""
    params = jax.tree.map(jnp.asarray, made.params)
    unravel = ravel_pytree(params)[1]

    def loss(params, x, y):
        hidden = jnp.tanh(x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"])
        outputs = hidden @ params["dense_1"]["kernel"] + params["dense_1"]["bias"]
        return jnp.mean(jnp.sum((outputs - jax.nn.one_hot(y, 3)) ** 2, axis=1))

    data = made.dataset.train_inputs[:], made.dataset.train_targets
    hessian = jax.jit(jax.hessian(lambda flat: loss(unravel(flat), *data)))
    gradient = jax.jit(jax.grad(loss))
    state, alignments = optimizer.init(params), []
    for index in made.indices(0):
        batch = data[0][index], data[1][index]
        updates, curvature = gradient(params, *batch), hessian(ravel_pytree(params)[0])
        if where == "gradient":
            updates, chi = scale(updates, curvature)
        more = extra(lambda p, batch=batch: loss(p, *batch), params)
        updates, state = optimizer.update(updates, state, params, **more)
        if where == "update":
            known = () if scale is scale_parts else (state,)
            updates, chi = scale(updates, curvature, *known)
        alignments.append(chi)
        params = optax.apply_updates(params, updates)
    return params, alignments


def assert_equal_runs(made, state, trace, params, alignments):
    start, ours, theirs = (
        np.asarray(ravel_pytree(x)[0]) for x in (made.params, state.params, params)
    )
    moved = np.linalg.norm(theirs - start)
    assert moved > 0.01
    # Solves to 1e-5, whose projectors err by that over the relative gap, about 0.01,
    # and float32 rounding, in steps that feed on each other.
    assert np.linalg.norm(ours - theirs) < 1e-3 * moved
    np.testing.assert_allclose(trace.alignments, alignments, atol=1e-3)


def no_extra(loss, params):
    return {}


def sam(momentum=0.0, rho=0.1):
    """SAM as in Foret et al., arXiv 2010.01412: SGD on the gradient up the hill."""
    inner = optax.sgd(RATE, momentum=momentum)

    def update(grads, state, params, uphill):
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        above = jax.tree.map(lambda p, g: p + rho * g / norm, params, grads)
        return inner.update(jax.grad(uphill)(above), state, params)

    return types.SimpleNamespace(init=inner.init, update=update)


# The fields, and the same by hand: an optimizer and what its update needs.
OPTIMIZERS = {
    "sgd": ({}, optax.sgd(RATE), no_extra),
    "momentum": ({"momentum": 0.9}, optax.sgd(RATE, 0.9), no_extra),
    "nesterov": (
        {"momentum": 0.9, "nesterov": True},
        optax.sgd(RATE, 0.9, nesterov=True),
        no_extra,
    ),
    "momentum and decay": (
        {"momentum": 0.9, "weight_decay": 0.3},
        optax.chain(
            optax.trace(0.9),
            optax.add_decayed_weights(0.3),
            optax.scale_by_learning_rate(RATE),
        ),
        no_extra,
    ),
    "adam": ({"name": "adam", **ADAM}, optax.adam(RATE, 0.8, 0.9, 1e-3), no_extra),
    "adamw": (
        {"name": "adamw", "weight_decay": 0.3, **ADAM},
        optax.adamw(RATE, 0.8, 0.9, 1e-3, weight_decay=0.3),
        no_extra,
    ),
    "sam": (
        {"name": "sam", "rho": 0.1, "momentum": 0.5},
        sam(0.5),
        lambda loss, params: {"uphill": loss},
    ),
    "muon": (
        {
            "name": "muon",
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 0.3,
            **ADAM,
        },
        contrib.muon(
            RATE,
            beta=0.9,
            eps=1e-3,
            weight_decay=0.3,
            adam_b1=0.8,
            adam_b2=0.9,
            adam_weight_decay=0.3,
        ),
        no_extra,
    ),
    "sophia": (
        {
            "name": "sophia",
            "weight_decay": 0.3,
            "gamma": 0.5,
            "diagonal_every": 3,
            **ADAM,
        },
        contrib.sophia(
            RATE,
            0.8,
            0.9,
            1e-3,
            0.3,
            gamma=0.5,
            update_interval=3,
            hessian_diagonal_fn=contrib.hutchinson_estimator_diag_hessian(
                jax.random.PRNGKey(SEED)
            ),
        ),
        lambda loss, params: {"obj_fn": loss},
    ),
}
CASES = [
    (name, where)
    for name in OPTIMIZERS
    for where in optimizers.PROJECTIONS
    if (name, where) != ("sam", "gradient")
]


@pytest.mark.parametrize(("name", "where"), CASES)
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
    params, alignments = by_hand(made, optimizer, "update", no_extra, scale_or_zero)
    assert_equal_runs(made, state, trace, params, alignments)


def scale_or_zero(vector, hessian, state):
    del state  # the first update of a warm-up is zero
    scaled, chi = scale_parts(vector, hessian) if any_of(vector) else (vector, 0.0)
    return scaled, chi


def any_of(vector):
    return bool(jnp.any(ravel_pytree(vector)[0]))


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
    programs, made = steps.Programs(config), experiment.Experiment(config)
    states = [programs.init(made.params, seed).inner for seed in (0, 1, 1)]
    first, second, again = (ravel_pytree(state)[0] for state in states)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(second, again)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "adam", "weight_decay": 0.1},
            r"weight_decay is 0\.1; .*'adamw' is A",
        ),
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
