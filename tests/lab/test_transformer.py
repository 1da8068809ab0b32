"""Transformers: against NumPy, what a position sees, and the Hessian through tokens."""

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
from configs import gpt2_small

VOCABULARY, LENGTH, CLASSES = 11, 6, 3
TOKENS = np.array([[5, 2, 9, 0, 0, 0], [1, 10, 3, 4, 2, 6]], np.int32)


def fields(name="transformer", **changes):
    config = {"name": name, "width": 8, "num_layers": 2, "num_heads": 2}
    config |= {"activation": "relu", "init": "lecun_normal", "hidden": (4,)}
    return config | {"tied": False, "scan_layers": False, "remat": False} | changes


def build(name="transformer", seed=0, vocab_size=VOCABULARY, **changes):
    config = ConfigDict(fields(name, **changes))
    return build_model(config, (LENGTH,), CLASSES, seed, vocab_size)


def random(name="transformer", **changes):
    """A function and parameters that NumPy draws."""
    config = fields(name, **changes)
    classes = VOCABULARY if config["tied"] else CLASSES
    return network(config, (LENGTH,), classes, VOCABULARY)


def stack(params):
    """The layers one by one as `scan_layers` has them."""
    params = dict(params)
    layers = [params.pop(f"block_{i}") for i in range(2)]
    return params | {"blocks": jax.tree.map(lambda *x: np.stack(x), *layers)}


def by_hand(params, tokens, causal):
    """Outputs of one example in float64."""
    visible = np.tri(LENGTH) if causal else tokens != 0
    x = params["tokens"]["embedding"][tokens] + params["positions"]["embedding"]
    for layer in (params["block_0"], params["block_1"]):
        x = block(layer, x, visible)
    x = norm(params["norm"], x)
    return dense(params["dense"], x if causal else x[tokens != 0].mean(0))


@pytest.fixture(scope="module", params=["transformer", "decoder"])
def compiled(request):
    """The name of a network, a compiled function of TOKENS, and parameters."""
    model_fn, params = random(request.param)
    return request.param, jax.jit(model_fn), params


def test_outputs_are_those_of_a_transformer_by_hand(compiled):
    name, model_fn, params = compiled
    expected = [by_hand(exact(params), x, name == "decoder") for x in TOKENS]
    np.testing.assert_allclose(model_fn(params, TOKENS), expected, atol=1e-5)


def test_a_position_sees_no_padding_and_nothing_that_follows(compiled):
    name, model_fn, params = compiled
    before = np.asarray(model_fn(params, TOKENS))
    if name == "transformer":
        embedding = params["tokens"]["embedding"].copy()
        embedding[0] += 7
        changed = model_fn(params | {"tokens": {"embedding": embedding}}, TOKENS)
        np.testing.assert_array_equal(changed[0], before[0])
        return
    later = TOKENS.copy()
    later[:, 4:] = 7
    after = model_fn(params, later)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert not np.allclose(before[:, 4:], after[:, 4:])


def test_torch_embeddings_are_standard_normal_and_the_others_scaled():
    for init, std in (("torch", 1), ("lecun_normal", 64**-0.5)):
        _, params = build(init=init, vocab_size=400, width=64)
        np.testing.assert_allclose(
            np.std(params["tokens"]["embedding"]), std, rtol=0.02
        )


def test_the_network_of_song_has_the_parameters_of_its_description():
    make = lambda: build(vocab_size=100, width=64, num_heads=8)[1]
    block = 2 * 2 * 64 + 64 * 3 * 64 + 3 * 64 + 64**2 + 64 + 2 * 64 * 256 + 256 + 64
    expected = (100 + LENGTH) * 64 + 2 * block + 2 * 64 + 64 * CLASSES + CLASSES
    leaves = jax.tree.leaves(jax.eval_shape(make))
    assert sum(leaf.size for leaf in leaves) == expected
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)


def test_tied_outputs_are_products_with_the_embeddings():
    model_fn, params = random("decoder", tied=True)
    assert "dense" not in params
    kernel = params["tokens"]["embedding"].T
    untied = params | {"dense": {"kernel": kernel, "bias": np.zeros(VOCABULARY)}}
    expected = [by_hand(exact(untied), tokens, causal=True) for tokens in TOKENS]
    outputs = jax.jit(model_fn)(params, TOKENS)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_stacked_layers_are_the_same_network(compiled):
    name, model_fn, params = compiled
    scanned_fn, like = random(name, scan_layers=True)
    stacked = stack(params)
    assert jax.tree.map(np.shape, like) == jax.tree.map(np.shape, stacked)
    outputs, expected = scanned_fn(stacked, TOKENS), model_fn(params, TOKENS)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_stacked_layers_begin_as_the_same_network():
    jax.tree.map(
        np.testing.assert_array_equal, build(scan_layers=True)[1], stack(build()[1])
    )


def test_gpt2_small_has_the_parameters_of_its_description():
    config = gpt2_small.get_config("quick")
    vocab_size = config.data.vocab_size
    make = lambda: build_model(config.model, (1024,), vocab_size, 0, vocab_size)[1]
    leaves = jax.tree.leaves(jax.eval_shape(make))
    # 124,439,808 in the original, of 50,257 tokens.
    assert sum(leaf.size for leaf in leaves) == 124_439_808 + 47 * 768 == 124_475_904


def test_seeds_share_a_function():
    (model_fn, params), (again, other) = build(), build(seed=1)
    assert model_fn == again
    assert hash(model_fn) == hash(again)
    assert model_fn != random("decoder")[0]
    embedding = params["tokens"]["embedding"], other["tokens"]["embedding"]
    assert not np.array_equal(*embedding)


@pytest.mark.parametrize(
    "name", [pytest.param("transformer", marks=pytest.mark.slow), "decoder"]
)
def test_hessian_products_agree_with_finite_differences(name):
    """Layers one by one and all kept; the other ways have the same products."""

    def product(**ways):
        model_fn, like = random(name, activation="gelu", **ways)
        own = like if "blocks" not in like else stack(params)
        value_fn = lambda p, x: jnp.sum(model_fn(p, x) ** 2)
        return value_fn, hessian_product(value_fn, own, TOKENS)

    _, params = random(name)
    value_fn, expected = product()
    assert_product_is_difference(expected, value_fn, params, TOKENS)
    for scan_layers, remat in ((False, True), (True, False), (True, True)):
        _, found = product(scan_layers=scan_layers, remat=remat)
        like = stack(expected) if scan_layers else expected
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
        jax.tree.map(close, found, like)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, r"num_heads is 3; it must divide config\.model\.width, 8"),
        ({"width": 0}, r"config\.model\.width is 0; it must be at least 1"),
        ({"num_layers": -1}, r"config\.model\.num_layers is -1; it must be at least 1"),
        ({"num_heads": 2.5}, r"config\.model\.num_heads is 2\.5; it must be an int"),
        ({"name": "mlp"}, "name is 'mlp', but the inputs are tokens, .*'transformer'"),
        ({"tied": True}, r"model\.tied is True, but 'transformer' has classes as out"),
        ({"vocab_size": 0}, r"'transformer', but the inputs are not tokens, .*'mlp'"),
    ],
)
def test_wrong_fields_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
