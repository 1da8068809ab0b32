"""The MLP and the CNN by hand in NumPy, how networks begin, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from networks import assert_product_is_difference, dense, hessian_product, network

from bulk_sgd.lab.models import layers
from bulk_sgd.lab.models.build import build_model

IMAGE = (8, 9, 3)


def fields(**changes):
    config = {"name": "cnn", "hidden": (6, 5), "channels": (4, 5), "pool": "average"}
    return config | {"activation": "tanh", "init": "lecun_normal"} | changes


def build(input_shape=IMAGE, seed=0, **changes):
    return build_model(ConfigDict(fields(**changes)), input_shape, 10, seed)


def random(**changes):
    """A compiled function and parameters that NumPy draws."""
    model_fn, params = network(fields(**changes), IMAGE, 10)
    return jax.jit(model_fn), params


def inputs(n=2):
    return np.random.default_rng(1).standard_normal((n, *IMAGE)).astype(np.float32)


def test_default_mlp_has_the_parameters_of_the_paper():
    params = jax.eval_shape(
        lambda: build((28, 28, 1), name="mlp", hidden=(200, 200))[1]
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 199_210


def test_mlp_is_dense_layers_with_activations_between():
    model_fn, params = random(name="mlp")
    x = inputs().reshape(2, -1)
    for layer in ("dense_0", "dense_1"):
        x = np.tanh(dense(params[layer], x))
    expected = dense(params["dense_2"], x)
    np.testing.assert_allclose(model_fn(params, inputs()), expected, atol=1e-5)


def test_mlp_without_hidden_layers_is_dense():
    model_fn, params = random(name="mlp", hidden=())
    expected = dense(params["dense_0"], inputs().reshape(2, -1))
    np.testing.assert_allclose(model_fn(params, inputs()), expected, atol=1e-5)


@pytest.mark.parametrize("pool", ["average", "max"])
def test_cnn_convolves_activates_pools_and_is_dense_at_the_end(pool):
    model_fn, params = random(pool=pool, activation="relu", channels=(4,))
    padded = np.pad(inputs(), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    kernel, bias = params["conv_0"]["kernel"], params["conv_0"]["bias"]
    x = np.maximum(np.einsum("nhwcij,ijcd->nhwd", windows, kernel) + bias, 0)
    x = x[:, :, :8].reshape(2, 4, 2, 4, 2, 4)  # the ninth column is dropped
    x = x.mean(axis=(2, 4)) if pool == "average" else x.max(axis=(2, 4))
    expected = dense(params["dense"], x.reshape(2, -1))
    np.testing.assert_allclose(model_fn(params, inputs()), expected, atol=1e-5)


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
def test_activations_are_those_of_jax(activation):
    model_fn, params = random(name="mlp", hidden=(6,), activation=activation)
    function = {"tanh": jnp.tanh, "relu": jax.nn.relu, "gelu": jax.nn.gelu}[activation]
    hidden = function(dense(params["dense_0"], inputs().reshape(2, -1)))
    expected = dense(params["dense_1"], hidden)
    np.testing.assert_allclose(model_fn(params, inputs()), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_params_are_a_plain_nested_dict_with_string_keys(name):
    _, params = build(name=name)
    assert type(params) is dict
    for name, layer in params.items():
        assert type(name) is str
        assert type(layer) is dict
        assert sorted(layer) == ["bias", "kernel"]
        assert all(isinstance(leaf, jax.Array) for leaf in layer.values())
        assert all(leaf.dtype == jnp.float32 for leaf in layer.values())


@pytest.mark.parametrize("init", ["lecun_normal", "torch"])
def test_seed_alone_decides_the_parameters(init):
    first, again, other = (build(seed=seed, init=init)[1] for seed in (3, 3, 4))
    assert jax.tree.all(jax.tree.map(np.array_equal, first, again))
    assert not np.array_equal(first["dense"]["kernel"], other["dense"]["kernel"])


def test_torch_init_is_uniform_within_one_over_root_fan_in():
    _, params = build(init="torch")
    fan_ins = {"conv_0": 9 * 3, "conv_1": 9 * 4, "dense": 2 * 2 * 5}
    kernels = [params[name]["kernel"] * fan_in**0.5 for name, fan_in in fan_ins.items()]
    biases = [params[name]["bias"] * fan_in**0.5 for name, fan_in in fan_ins.items()]
    for leaf in kernels + biases:
        assert 0.5 < np.abs(leaf).max() <= 1 + 1e-6
    for kernel in kernels:
        np.testing.assert_allclose(np.std(kernel), 3**-0.5, rtol=0.15)


def test_lecun_init_has_variance_one_over_fan_in_and_no_bias():
    _, params = build(name="mlp")
    layer = params["dense_0"]
    np.testing.assert_allclose(np.std(layer["kernel"]), 216**-0.5, rtol=0.05)
    assert not layer["bias"].any()


@pytest.mark.parametrize("changes", [{"name": "mlp"}, {"init": "torch"}])
def test_equal_configurations_share_a_jit_cache(changes):
    (model_fn, params), (again, other) = build(**changes), build(seed=1, **changes)
    assert model_fn == again
    assert hash(model_fn) == hash(again)
    apply = jax.jit(lambda fn, p, x: fn(p, x), static_argnums=0)
    apply(model_fn, params, inputs())
    apply(again, other, inputs())
    assert apply._cache_size() == 1


def test_different_configurations_are_different_functions():
    assert build()[0] != build(pool="max")[0]
    assert build()[0] != build(activation="relu")[0]


@pytest.mark.parametrize("changes", [{"name": "mlp"}, {"pool": "max"}])
def test_hessian_products_agree_with_finite_differences(changes):
    """Under vmap too, which several vectors at a time need."""
    model_fn, params = network(fields(**changes), IMAGE, 10)
    value_fn = lambda p, x: jnp.sum(model_fn(p, x) ** 2)
    arguments = value_fn, params, inputs().astype(np.float64)
    product = hessian_product(*arguments, under_vmap=True)
    assert_product_is_difference(product, *arguments, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vat"}, r"name is 'vat'; .*cnn, decoder, mlp, res"),
        ({"activation": "elu"}, r"activation is 'elu'; .*gelu, relu, tanh"),
        ({"init": "zeros"}, r"init is 'zeros'; .*lecun_normal, torch"),
        ({"pool": "min"}, r"pool is 'min'; .*average, max"),
        ({"channels": (4, 0)}, r"channels is \(4, 0\).*positive integers"),
        ({"name": "mlp", "hidden": 9}, r"hidden is 9.*positive integers"),
        ({"name": "mlp", "hidden": (2.5,)}, r"hidden is \(2\.5,\).*positive"),
        ({"channels": (4,) * 4}, r"channels is .*16×16 pixels.*\(8, 9, 3\)"),
        ({"input_shape": (64,)}, r"channels is .*inputs have shape \(64,\)"),
    ],
)
def test_wrong_fields_are_named(changes, message):
    with pytest.raises(ValueError, match=rf"^config\.model\.{message}"):
        build(**changes)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed is -1"):
        build(seed=-1)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_convolution_by_patches_is_the_convolution(size):
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": "highest"}
    margins = [((size - 1) // 2, size // 2)] * 2

    @jax.jit
    def both(*arrays):
        return [
            (
                layers.convolve(*arrays, strides, margins),
                jax.lax.conv_general_dilated(*arrays, strides, margins, **layout),
            )
            for strides in ((1, 1), (2, 2), (2, 1))
        ]

    rng = np.random.default_rng(size)
    shapes = (2, 6, 5, 3), (size, size, 3, 4)
    arrays = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    for found, expected in both(*arrays):
        # Up to 75 products are summed, in another order.
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
