"""Grouping of parameters, and products within a block, against dense matrices."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import dense

import bulk_sgd
from bulk_sgd.curvature import blocks, masking

PARAMS = {
    "encoder": {
        "block_0": {"dense": {"kernel": 1.0, "bias": 2.0}, "norm": {"scale": 3.0}},
        "block_1": {"dense": {"kernel": 4.0, "bias": 5.0}, "norm": {"scale": 6.0}},
    },
    "head": {"kernel": 7.0},
    "temperature": 8.0,
}


@pytest.mark.parametrize(
    ("by", "sums"),
    [
        (
            None,
            {
                "encoder/block_0/dense": 3,
                "encoder/block_0/norm": 3,
                "encoder/block_1/dense": 9,
                "encoder/block_1/norm": 6,
                "head": 7,
                "temperature": 8,
            },
        ),
        (r"block_\d+", {"block_0": 6, "block_1": 15}),
        (r"block_(\d+)", {"0": 6, "1": 15}),
        (r"kernel|bias", {"bias": 7, "kernel": 12}),
        (lambda path: "all" if "/" in path else None, {"all": 28}),
    ],
)
def test_blocks_hold_their_leaves(by, sums):
    found = blocks.masks(PARAMS, by)
    assert list(found) == list(sums)
    for name, mask in found.items():
        assert sum(jax.tree.leaves(masking.select(PARAMS, mask))) == sums[name]


def test_layer_is_the_default():
    assert blocks.names(PARAMS, "layer") == blocks.names(PARAMS)
    assert blocks.names({"layers": {"w": 1.0}}, "layer") == ["layers"]


def test_every_leaf_by_itself():
    assert blocks.names(PARAMS, ".*") == blocks.paths(PARAMS)
    assert blocks.paths(jnp.ones(2)) == blocks.names(jnp.ones(2)) == ["params"]


def test_variables_of_flax_are_named_like_their_layer():
    layers = [nnx.Linear(2, 2, rngs=nnx.Rngs(0)) for _ in range(2)]
    params = nnx.state(nnx.Sequential(*layers), nnx.Param)
    assert blocks.paths(params)[:2] == ["layers/0/bias", "layers/0/kernel"]
    assert list(blocks.masks(params)) == ["layers/0", "layers/1"]


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("(", "it must be None, 'layer', a regular expression or a fun"),
        (3, "by is 3; it must be None, 'layer', a regular expression"),
        ("conv", "by is 'conv', which puts no parameter in a block; .* head/kernel"),
        (lambda path: 0, "by gave 0; it must give a name or None"),
    ],
)
def test_what_is_no_grouping_is_refused(by, message):
    with pytest.raises(ValueError, match=message):
        blocks.names(PARAMS, by)


def test_restricted_product_is_the_dense_block(x64):
    objective, params = helpers.objective(
        helpers.mlp(), helpers.squared_error, microbatch_size=3, dtype=jnp.float64
    )
    matvec = bulk_sgd.hessian(objective, params)
    matrix = dense(matvec, params)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    found = blocks.names(params, ".*")
    owner = np.repeat(np.arange(len(sizes)), sizes)
    prefix = {"hidden": True, "out": False}
    got = dense(
        blocks.diagonal_block(matvec, params, prefix), masking.select(params, prefix)
    )
    np.testing.assert_allclose(got, matrix[:16, :16], atol=1e-13)
    for by in (".*", lambda path: "ends" if path in (found[0], found[-1]) else "rest"):
        labels = blocks.names(params, by)
        for name, mask in blocks.masks(params, by).items():
            inside = np.array([label == name for label in labels])[owner]
            block = blocks.diagonal_block(matvec, params, mask)
            got = dense(block, masking.select(params, mask))
            # One matrix by two programs: rounding alone.
            np.testing.assert_allclose(got, matrix[inside][:, inside], atol=1e-13)


def test_a_block_at_other_parameters_is_the_same_program(x64):
    objective, params = helpers.objective(helpers.mlp(), helpers.squared_error)
    mask = blocks.masks(params, ".*")[blocks.paths(params)[0]]
    traces = []

    @jax.jit
    def apply(matvec, vector):
        traces.append(None)
        return matvec.linearize()(vector)

    for shift in (0.0, 1.0):
        moved = jax.tree.map(lambda x, shift=shift: x + shift, params)
        matvec = blocks.diagonal_block(bulk_sgd.hessian(objective, moved), moved, mask)
        apply(matvec, masking.select(params, mask))
    assert len(traces) == 1
