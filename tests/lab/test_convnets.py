"""VGG-11 and ResNet-8: shapes and sizes, by hand in NumPy, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_sets import write_images
from ml_collections import ConfigDict
from networks import assert_product_is_difference, exact, hessian_product, network

from bulk_sgd.lab.models.build import build_model
from bulk_sgd.lab.training.experiment import Experiment
from configs import song_cifar10


def fields(name, **changes):
    config = {"name": name, "width": 4, "norm": "group", "num_groups": 2}
    config |= {"pool": "max", "activation": "relu", "init": "lecun_normal"}
    return config | changes


def build(name, input_shape=(32, 32, 3), seed=0, **changes):
    return build_model(ConfigDict(fields(name, **changes)), input_shape, 10, seed)


@pytest.fixture(scope="module", params=["vgg11", "resnet8"])
def compiled(request):
    """The name of a network, a compiled function of two images, and parameters."""
    model_fn, params = network(fields(request.param), (32, 32, 3), 10)
    return request.param, jax.jit(model_fn), params


def images(n=2, side=32):
    shape = n, side, side, 3
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def conv(layer, x, stride=1):
    kernel = layer["kernel"]
    margin = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, kernel.shape[:2], axis=(1, 2)
    )[:, ::stride, ::stride]
    return np.einsum("nhwcij,ijcd->nhwd", windows, kernel) + layer["bias"]


def group_norm(layer, x, groups=2):
    x = x.reshape(*x.shape[:3], groups, -1)
    centred = x - x.mean((1, 2, 4), keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean((1, 2, 4), keepdims=True) + 1e-6)
    return scaled.reshape(*x.shape[:3], -1) * layer["scale"] + layer["bias"]


def resnet8_by_hand(p, x):
    x = np.maximum(group_norm(p["norm"], conv(p["conv"], x)), 0)
    for i, stride in enumerate((1, 2, 2)):
        unit = p[f"block_{i}"]
        y = group_norm(unit["norm_0"], conv(unit["conv_0"], x, stride))
        y = group_norm(unit["norm_1"], conv(unit["conv_1"], np.maximum(y, 0)))
        if i:
            x = group_norm(unit["norm_2"], conv(unit["conv_2"], x, stride))
        assert ("conv_2" in unit) == bool(i)
        x = np.maximum(x + y, 0)
    return x.mean((1, 2)) @ p["dense"]["kernel"] + p["dense"]["bias"]


def vgg11_by_hand(p, x):
    for i, convolutions in enumerate((1, 1, 2, 2, 2)):
        for j in range(convolutions):
            x = group_norm(p[f"norm_{i}_{j}"], conv(p[f"conv_{i}_{j}"], x))
            x = np.maximum(x, 0)
        n, side, _, depth = x.shape
        x = x.reshape(n, side // 2, 2, side // 2, 2, depth).max((2, 4))
    return x.reshape(len(x), -1) @ p["dense"]["kernel"] + p["dense"]["bias"]


def test_outputs_are_those_by_hand(compiled):
    name, model_fn, params = compiled
    by_hand = {"vgg11": vgg11_by_hand, "resnet8": resnet8_by_hand}[name]
    expected = by_hand(exact(params), np.asarray(images(), np.float64))
    np.testing.assert_allclose(model_fn(params, images()), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "width", "size"), [("vgg11", 64, 9_225_610), ("resnet8", 16, 77_706)]
)
def test_original_widths_without_normalization(name, width, size):
    make = lambda: build(name, width=width, norm="none")[1]
    leaves = jax.tree.leaves(jax.eval_shape(make))
    assert sum(leaf.size for leaf in leaves) == size


def test_examples_are_not_coupled(compiled):
    _, model_fn, params = compiled
    one, other = images(), images()
    other[1] = one[0] ** 2
    together, alone = model_fn(params, one), model_fn(params, other)
    np.testing.assert_allclose(together[0], alone[0], atol=1e-6)
    assert not np.allclose(together[1], alone[1], atol=1e-4)


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize(
    "name", [pytest.param("vgg11", marks=pytest.mark.slow), "resnet8"]
)
def test_seeds_share_a_function(name, norm):
    functions = []

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def kernel(seed, norm):
        """One leaf: XLA drops the programs that draw the others."""
        model_fn, params = build(name, norm=norm, seed=seed)
        functions.append(model_fn)
        return params["dense"]["kernel"]

    first, other = kernel(0, norm), kernel(1, norm)
    jax.eval_shape(lambda: kernel(0, "group" if norm == "none" else "none"))
    assert functions[0] == functions[1] != functions[2]
    assert hash(functions[0]) == hash(functions[1])
    assert not np.array_equal(first, other)


@pytest.mark.slow
def test_hessian_products_agree_with_finite_differences():
    model_fn, params = network(fields("resnet8", activation="tanh"), (8, 8, 3), 10)
    value_fn = lambda p, x: jnp.sum(model_fn(p, x) ** 2)
    arguments = value_fn, params, np.asarray(images(side=8), np.float64)
    assert_product_is_difference(hessian_product(*arguments), *arguments)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vgg11", {"norm": "batch"}, r"norm is 'batch'.*group, none: batch normal"),
        ("resnet8", {"norm": "batch"}, r"norm is 'batch'.*couples the examples"),
        ("resnet8", {"norm": "layer"}, r"norm is 'layer'; .*group, none"),
        ("vgg11", {"num_groups": 3}, r"num_groups is 3; it must divide config\.mode"),
        ("vgg11", {"num_groups": 0}, r"num_groups is 0; it must be at least 1"),
        ("resnet8", {"width": 0}, r"width is 0; it must be at least 1"),
        ("vgg11", {"pool": "min"}, r"pool is 'min'"),
        ("vgg11", {"input_shape": (28, 28, 1)}, r"name is 'vgg11', .*32×32 pixels"),
        ("resnet8", {"input_shape": (64,)}, r"name is 'resnet8', .*shape \(64,\)"),
    ],
)
def test_wrong_fields_are_named(name, changes, message):
    with pytest.raises(ValueError, match=rf"^config\.model\.{message}"):
        build(name, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"channels": (4, 4, 4)},
        {"name": "resnet8", "width": 4, "num_groups": 2},
    ],
)
def test_song_takes_steps_with_each_network(tmp_path, model):
    write_images(tmp_path / "images.npz", 12)
    config = song_cifar10.get_config("quick")
    config.data.update(name=f"{tmp_path}/images.npz", num_train=0, num_test=0)
    config.model.update(model)
    config.batch_size, config.subspace.rank = 4, 2
    config.num_steps, config.switch.step, config.eval_every = 4, 2, 2
    config.arms = ("bulk_sgd",)
    made = Experiment(config)
    arguments = made.task, made.feed(0), 2, made.scalars(made.arms[0])
    # One program of the five of a run: these compile for minutes.
    state, trace = made.programs.train(made.start(), *arguments, projected=True)
    assert int(state.step) == 2
    assert int(state.projection.refreshes) >= 1
    assert int(state.projection.failed_refreshes) == 0
    assert np.isfinite(trace.batch_losses).all()
    moved = jax.tree.map(
        lambda x, y: float(abs(x - y).max()), state.params, made.params
    )
    assert max(jax.tree.leaves(moved)) > 0
