"""A training loop that uses the library alone, to compare a run with."""

import jax
import jax.numpy as jnp
import optax

import bulk_sgd
from bulk_sgd.lab.data import sources
from bulk_sgd.lab.data.batches import batch_indices
from bulk_sgd.lab.from_config import losses
from bulk_sgd.lab.models.build import build_model


def by_hand(config, method, num_steps):
    """A loop that uses the library alone.

    Returns for each step the loss after it, and χ of the update and the full gradient.
    """
    set_ = sources.load(config.data)
    shape = set_.train_inputs.shape[1:]
    model_fn, params = build_model(config.model, shape, 10, config.seed)
    loss_fn = losses.build(config.loss, 10)
    inputs, targets = jnp.asarray(set_.train_inputs), jnp.asarray(set_.train_targets)
    full = bulk_sgd.Objective(model_fn, loss_fn, inputs, targets)
    order = batch_indices(config.seed, 0, num_steps, 60, config.batch_size)
    state = method.init(params)

    @jax.jit
    def step(params, state, index):
        batch = bulk_sgd.Objective(model_fn, loss_fn, inputs[index], targets[index])
        grads = jax.grad(batch)(params)
        updates, state = method.update(grads, state, params, value_fn=full)
        of_update = optax.tree_utils.tree_get(state, "alignment")
        subspace = optax.tree_utils.tree_get(state, "subspace")
        of_full = subspace.alignment(jax.grad(full)(params))
        params = optax.apply_updates(params, updates)
        return params, state, (full(params), of_update, of_full)

    trace = []
    for index in order:
        params, state, row = step(params, state, index)
        trace.append(tuple(map(float, row)))
    return trace
