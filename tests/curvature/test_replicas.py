"""Replicas that share the params: the same products on all, or a refusal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import abstract_mesh, mlp, objective, squared_error
from jax.flatten_util import ravel_pytree
from small_transforms import PARAMS, loss, transform, update

import bulk_sgd


@pytest.mark.parametrize("mode", ["auto", "reverse_over_reverse"])
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton", "functional_hessian"])
def test_products_of_a_mean_over_replicas_are_those_of_all_examples(x64, kind, mode):
    made, params = objective(mlp(), squared_error)
    made = made.take(jnp.arange(6))
    flat, unravel = ravel_pytree(params)
    average = lambda f, y: jax.lax.pmean(jnp.mean(squared_error(f, y)), "data")

    def matrix(made):
        matvec = getattr(bulk_sgd, kind)(made, params, mode=mode)
        return jax.vmap(lambda v: ravel_pytree(matvec(unravel(v)))[0])(
            jnp.eye(len(flat))
        )

    def on_replica(data):
        part = bulk_sgd.Objective(made.model_fn, average, *data)
        return matrix(part), matrix(dataclasses.replace(part, microbatch_size=2))

    halves = jax.tree.map(
        lambda x: x.reshape(2, 3, *x.shape[1:]), (made.inputs, made.targets)
    )
    on_replicas = jax.jit(jax.vmap(on_replica, axis_name="data"))
    for found in on_replicas(halves):
        # Rounding, as in test_hessian.py; the halves differ by about 1.
        expected = np.broadcast_to(matrix(made), found.shape)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def trace(value_fn, *, check_vma=False, sizes=(2, 1), **options):
    """Traces an update on a mesh without devices."""
    step = lambda: update(transform(**options), PARAMS, value_fn)[0]
    mesh = abstract_mesh(*sizes)
    with jax.sharding.use_abstract_mesh(mesh):
        jax.eval_shape(
            jax.shard_map(
                step, mesh=mesh, in_specs=(), out_specs=jax.P(), check_vma=check_vma
            )
        )


def mean(params):
    return jax.lax.pmean(loss(params), "data")


def some(params):
    return jax.lax.psum(loss(params), "data", axis_index_groups=[[0], [1]])


def averaged(value_fn, params):
    matvec = bulk_sgd.hessian(value_fn, params)
    return lambda vector: jax.lax.pmean(matvec(vector), "data")


def test_replicas_that_would_drift_apart_are_refused():
    refused = pytest.raises(
        ValueError, match=r"^value_fn takes no mean over 'data', .*"
    )
    for value_fn in loss, some:
        with refused:
            trace(value_fn)
    with refused:
        trace(loss, refresh_every=2)
    with pytest.raises(ValueError, match=r"no mean over 'fsdp'"):
        trace(mean, sizes=(2, 2))


def test_replicas_that_agree_are_not_refused():
    trace(mean)
    trace(loss, curvature=averaged)
    trace(loss, sizes=(1, 1))
    trace(loss, check_vma=True)
    trace(loss, solver=bulk_sgd.update_pca())  # takes no products
    lanes = jax.vmap(
        lambda params: update(transform(), params)[1], axis_name="data", axis_size=2
    )
    jax.eval_shape(lanes, jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS))
