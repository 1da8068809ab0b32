"""What all operators share: layouts, products at one point, and their treedefs."""

import itertools

import jax
import jax.numpy as jnp
from helpers import abstract_mesh

import bulk_sgd
from bulk_sgd.curvature import blocks
from bulk_sgd.curvature.operators import linearize, sharded, spans_devices


def test_linearize_calls_other_callables_as_they_are():
    matvec = lambda v: 2 * v
    assert linearize(matvec)(jnp.ones(2)).tolist() == [2, 2]


def test_a_layout_inside_an_operator_says_whether_its_vectors_span_devices():
    one, two = (abstract_mesh(n, names=("fsdp",)) for n in (1, 2))
    matvec = lambda vector: vector

    def on(mesh):
        return sharded(matvec, jax.NamedSharding(mesh, jax.P("fsdp")))

    assert spans_devices(on(two))
    assert not spans_devices(on(one))
    assert spans_devices(matvec) == (jax.device_count() > 1)
    outer = bulk_sgd.preconditioned(on(two), jnp.ones(4))
    assert spans_devices(outer)
    hidden = jax.tree_util.Partial(lambda inner, vector: inner(vector), on(two))
    assert spans_devices(hidden)
    here = jax.tree.map(lambda x: x.sharding, jnp.ones(4))
    assert not spans_devices(sharded(matvec, here))


def test_kinds_of_operators_never_share_a_program():
    params = jnp.ones(4)
    matvec = bulk_sgd.hessian(lambda x: jnp.sum(x**3), params)
    kinds = [
        matvec,
        sharded(matvec, params.sharding),
        bulk_sgd.preconditioned(matvec, params),
        bulk_sgd.preconditioned(bulk_sgd.preconditioned(matvec, params), params),
        blocks.diagonal_block(matvec, params, True),
    ]
    structures = map(jax.tree.structure, kinds)
    assert all(a != b for a, b in itertools.combinations(structures, 2))
