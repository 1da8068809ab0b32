"""The vision transformer: by hand in NumPy, and its Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from networks import (
    assert_product_is_difference,
    block,
    dense,
    exact,
    hessian_product,
    network,
    norm,
)

from bulk_sgd.lab.models.build import build_model

IMAGE = (6, 4, 3)


def fields(**changes):
    config = {"name": "vit", "width": 8, "num_layers": 1, "num_heads": 2, "patch": 2}
    config |= {"activation": "relu", "init": "lecun_normal"}
    return config | {"scan_layers": False, "remat": False} | changes


def build(input_shape=IMAGE, seed=0, **changes):
    return build_model(ConfigDict(fields(**changes)), input_shape, 3, seed)


def images(n=2):
    return np.random.default_rng(1).standard_normal((n, *IMAGE)).astype(np.float32)


def by_hand(params, image):
    """Outputs of one image, patch by patch, in float64."""
    patches = [
        image[i : i + 2, j : j + 2].ravel() for i in range(0, 6, 2) for j in (0, 2)
    ]
    x = dense(params["patches"], np.array(patches)) + params["positions"]["embedding"]
    x = norm(params["norm"], block(params["block_0"], x, visible=True))
    return dense(params["dense"], x.mean(0))


def test_outputs_are_those_of_a_vision_transformer_by_hand():
    model_fn, params = network(fields(), IMAGE, 3)
    expected = [by_hand(exact(params), image) for image in images()]
    outputs = jax.jit(model_fn)(params, images())
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


@pytest.mark.parametrize("init", ["lecun_normal", "torch"])
def test_the_tiny_size_has_the_parameters_of_its_papers(init):
    sizes = {"width": 192, "num_layers": 12, "num_heads": 3, "patch": 16}
    sizes["init"] = init
    leaves = jax.tree.leaves(jax.eval_shape(lambda: build((224, 224, 3), **sizes)[1]))
    # DeiT-Ti has 5,717,416, among them a class token and its position.
    assert sum(leaf.size for leaf in leaves) == 5_717_416 - 2 * 192 - 193 * (1000 - 3)


@pytest.mark.parametrize("init", ["lecun_normal", "torch"])
def test_seeds_share_a_function(init):
    (model_fn, params), (again, other) = (build(seed=s, init=init) for s in (0, 1))
    assert model_fn == again
    assert hash(model_fn) == hash(again)
    kernels = params["patches"]["kernel"], other["patches"]["kernel"]
    assert not np.array_equal(*kernels)


@pytest.mark.slow
def test_hessian_products_agree_with_finite_differences():
    model_fn, params = network(fields(activation="gelu"), IMAGE, 3)
    value_fn = lambda p, x: jnp.sum(model_fn(p, x) ** 2)
    arguments = value_fn, params, np.asarray(images(), np.float64)
    assert_product_is_difference(hessian_product(*arguments), *arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 4}, r"patch is 4; it must divide height and width .*, 6 and 4"),
        ({"patch": 0}, r"patch is 0; it must be at least 1"),
        ({"patch": 5}, r"patch is 5, which takes images of at least 5×5 pixels"),
        ({"num_heads": 3}, r"num_heads is 3; it must divide config\.model\.width, 8"),
        ({"input_shape": (24,)}, r"patch is 2, which takes images .* shape \(24,\)"),
    ],
)
def test_wrong_fields_are_named(changes, message):
    with pytest.raises(ValueError, match=rf"^config\.model\.{message}"):
        build(**changes)
