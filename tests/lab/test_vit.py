"""The vision transformer: by hand in NumPy, and its Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_products_are_differences
from ml_collections import ConfigDict

from bulk_sgd.lab.models.build import build_model

IMAGE = (6, 4, 3)


def build(input_shape=IMAGE, seed=0, **changes):
    config = {"name": "vit", "width": 8, "num_layers": 1, "num_heads": 2, "patch": 2}
    config |= {
        "activation": "relu",
        "init": "lecun_normal",
        "scan_layers": False,
        "remat": False,
    }
    return build_model(ConfigDict(config | changes), input_shape, 3, seed)


def images(n=2):
    return np.asarray(jax.random.normal(jax.random.key(1), (n, *IMAGE)))


def by_hand(params, image):
    """Outputs of one image, patch by patch and head by head, in float64."""

    def dense(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    def norm(layer, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * layer["scale"]

    patches = [
        image[i : i + 2, j : j + 2].ravel() for i in range(0, 6, 2) for j in (0, 2)
    ]
    x = dense(params["patches"], np.array(patches)) + params["positions"]["embedding"]
    block = params["block_0"]
    mixed = dense(block["attention_in"], norm(block["norm_attention"], x))
    seen = []
    for head in range(2):
        query, key, value = (mixed[:, 8 * i + 4 * head :][:, :4] for i in range(3))
        weights = np.exp(query @ key.T / 2)
        seen.append(weights / weights.sum(1, keepdims=True) @ value)
    x = x + dense(block["attention_out"], np.concatenate(seen, axis=1))
    hidden = np.maximum(dense(block["dense_in"], norm(block["norm_dense"], x)), 0)
    x = norm(params["norm"], x + dense(block["dense_out"], hidden))
    return dense(params["dense"], x.mean(0))


def exact(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


@pytest.mark.parametrize("init", ["lecun_normal", "torch"])
def test_outputs_are_those_of_a_vision_transformer_by_hand(init):
    model_fn, params = build(init=init)
    expected = [by_hand(exact(params), image) for image in images()]
    np.testing.assert_allclose(model_fn(params, images()), expected, atol=1e-5)


def test_the_tiny_size_has_the_parameters_of_its_papers():
    sizes = {"width": 192, "num_layers": 12, "num_heads": 3, "patch": 16}
    leaves = jax.tree.leaves(jax.eval_shape(lambda: build((224, 224, 3), **sizes)[1]))
    # DeiT-Ti has 5,717,416, among them a class token and its position.
    assert sum(leaf.size for leaf in leaves) == 5_717_416 - 2 * 192 - 193 * (1000 - 3)


def test_seeds_share_a_function():
    (model_fn, params), (again, other) = build(), build(seed=1)
    assert model_fn == again
    assert hash(model_fn) == hash(again)
    kernels = params["patches"]["kernel"], other["patches"]["kernel"]
    assert not np.array_equal(*kernels)


def test_hessian_products_agree_with_finite_differences():
    model_fn, params = build(activation="gelu")
    assert_products_are_differences(
        lambda p, x: jnp.sum(model_fn(p, x) ** 2),
        params,
        np.asarray(images(), np.float64),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 4}, r"patch is 4, but must divide height and width .*, 6 and 4"),
        ({"patch": 0}, r"patch is 0, but must be a positive integer"),
        ({"patch": 5}, r"patch is 5, which takes images of at least 5×5 pixels"),
        ({"num_heads": 3}, r"num_heads is 3, but must divide config\.model\.width, 8"),
        ({"input_shape": (24,)}, r"patch is 2, which takes images .* shape \(24,\)"),
    ],
)
def test_wrong_fields_are_named(changes, message):
    with pytest.raises(ValueError, match=rf"^config\.model\.{message}"):
        build(**changes)
