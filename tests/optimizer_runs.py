"""Steps of a run by each optimizer, and the same written by hand with optax."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import flat
from jax.flatten_util import ravel_pytree
from optax import contrib

from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.training.experiment import Experiment

RATE, RANK, STEPS, SCALES, SEED = 0.05, 2, 12, (0.25, 1.5), 3
# Adam at its default eps takes the sign of gradients that are rounding errors.
ADAM = {"b1": 0.8, "b2": 0.9, "eps": 1e-3}


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
    made = Experiment(config)
    state, trace = made.programs.train(
        made.start(),
        made.task,
        made.indices(0),
        STEPS,
        made.scalars(made.arms[0]),
        projected=True,
    )
    assert int(state.projection.failed_refreshes) == 0
    return made, state, trace


def scale_parts(vector, hessian):
    """a P u + b (u − P u) by a dense decomposition in float64, and χ."""
    u = flat(vector)
    basis = np.linalg.eigh(np.asarray(hessian, np.float64))[1][:, -RANK:]
    inside = basis @ (basis.T @ u)
    scaled = SCALES[0] * inside + SCALES[1] * (u - inside)
    chi = np.linalg.norm(inside) / np.linalg.norm(u)
    return shaped(scaled, vector), chi


def shaped(numbers, like):
    """A flat vector as a pytree in float32."""
    leaves, treedef = jax.tree.flatten(like)
    parts = np.split(np.float32(numbers), np.cumsum([x.size for x in leaves])[:-1])
    return treedef.unflatten([x.reshape(y.shape) for x, y in zip(parts, leaves)])


def loss(params, x, y):
    hidden = jnp.tanh(x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"])
    outputs = hidden @ params["dense_1"]["kernel"] + params["dense_1"]["bias"]
    return jnp.mean(jnp.sum((outputs - jax.nn.one_hot(y, 3)) ** 2, axis=1))


@jax.jit
def derivatives(params, batch, data):
    """The gradient of a batch, and the Hessian of all data."""
    vector, unravel = ravel_pytree(params)
    hessian = jax.hessian(lambda vector: loss(unravel(vector), *data))
    return jax.grad(loss)(params, *batch), hessian(vector)


def by_hand(made, optimizer, where, extra, scale=scale_parts):
    """Parameters at the end, and χ and the descent ratio of each step, spelt out."""
    params = jax.tree.map(jnp.asarray, made.params)
    data = made.dataset.train_inputs[:], made.dataset.train_targets
    state, facts = optimizer.init(params), []

    @jax.jit
    def update(grads, state, params, batch):
        more = extra(lambda p: loss(p, *batch), params)
        return optimizer.update(grads, state, params, **more)

    def scaled(grads, updates, *known):
        after, chi = scale(updates, *known)
        promised, kept = (flat(grads) @ flat(v) for v in (updates, after))
        facts.append((chi, kept / (promised or 1)))
        return after

    for index in made.indices(0):
        batch = data[0][index], data[1][index]
        grads, curvature = derivatives(params, batch, data)
        updates = scaled(grads, grads, curvature) if where == "gradient" else grads
        updates, state = update(updates, state, params, batch)
        if where == "update":
            known = () if scale is scale_parts else (state,)
            updates = scaled(grads, updates, curvature, *known)
        params = optax.apply_updates(params, updates)
    return params, facts


def assert_equal_runs(made, state, trace, params, facts):
    start, ours, theirs = map(flat, (made.params, state.params, params))
    moved = np.linalg.norm(theirs - start)
    assert moved > 0.01
    # Solves to 1e-5, whose projectors err by that over the relative gap, about 0.01,
    # and float32 rounding, in steps that feed on each other.
    assert np.linalg.norm(ours - theirs) < 1e-3 * moved
    ours = np.stack([trace.alignments, trace.descent_ratios], axis=1)
    np.testing.assert_allclose(ours, facts, atol=1e-3)


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
# Updates of all, and gradients of which more is made than a product with a rate.
CASES = [
    *((name, "update") for name in OPTIMIZERS),
    *((name, "gradient") for name in ("momentum", "adam", "muon", "sophia")),
    ("momentum and decay", "gradient"),
]
