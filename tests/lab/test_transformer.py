"""Transformers: against NumPy, what a position sees, and the Hessian through tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_products_are_differences
from ml_collections import ConfigDict

from bulk_sgd.lab.models.build import build_model
from configs import gpt2_small

VOCABULARY, LENGTH, CLASSES = 11, 6, 3
TOKENS = np.array([[5, 2, 9, 0, 0, 0], [1, 10, 3, 4, 2, 6]], np.int32)


def build(name="transformer", seed=0, vocab_size=VOCABULARY, **changes):
    config = {"name": name, "width": 8, "num_layers": 2, "num_heads": 2}
    config |= {"activation": "relu", "init": "lecun_normal", "hidden": (4,)}
    config |= {"tied": False, "scan_layers": False, "remat": False} | changes
    classes = vocab_size if config["tied"] else CLASSES
    return build_model(ConfigDict(config), (LENGTH,), classes, seed, vocab_size)


def by_hand(params, tokens, causal):
    """Outputs of one example, a head and a position at a time, in float64."""

    def dense(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    def norm(layer, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * layer["scale"]

    def softmax(x):
        return np.exp(x) / np.exp(x).sum()

    x = params["tokens"]["embedding"][tokens] + params["positions"]["embedding"]
    for block in (params["block_0"], params["block_1"]):
        mixed = dense(block["attention_in"], norm(block["norm_attention"], x))
        seen = np.zeros_like(x)
        for head in range(2):
            query, key, value = (mixed[:, 8 * i + 4 * head :][:, :4] for i in range(3))
            for i in range(LENGTH):
                visible = np.arange(LENGTH) <= i if causal else tokens != 0
                weights = softmax(key[visible] @ query[i] / 2)
                seen[i, 4 * head : 4 * head + 4] = weights @ value[visible]
        x = x + dense(block["attention_out"], seen)
        hidden = np.maximum(dense(block["dense_in"], norm(block["norm_dense"], x)), 0)
        x = x + dense(block["dense_out"], hidden)
    x = norm(params["norm"], x)
    return dense(params["dense"], x if causal else x[tokens != 0].mean(0))


@pytest.mark.parametrize("init", ["lecun_normal", "torch"])
@pytest.mark.parametrize("name", ["transformer", "decoder"])
def test_outputs_are_those_of_a_transformer_by_hand(name, init):
    model_fn, params = build(name, init=init)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    expected = [by_hand(exact, tokens, name == "decoder") for tokens in TOKENS]
    np.testing.assert_allclose(model_fn(params, TOKENS), expected, atol=1e-5)


def test_padding_does_not_matter():
    model_fn, params = build()
    params["tokens"]["embedding"] = params["tokens"]["embedding"].at[0].add(7)
    changed = model_fn(params, TOKENS)
    np.testing.assert_array_equal(changed[0], model_fn(build()[1], TOKENS)[0])


def test_decoder_does_not_see_what_follows():
    model_fn, params = build("decoder")
    later = TOKENS.copy()
    later[:, 4:] = 7
    before, after = model_fn(params, TOKENS), model_fn(params, later)
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
    model_fn, params = build("decoder", tied=True)
    assert "dense" not in params
    untied = params | {
        "dense": {
            "kernel": params["tokens"]["embedding"].T,
            "bias": np.zeros(VOCABULARY),
        }
    }
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), untied)
    expected = [by_hand(exact, tokens, causal=True) for tokens in TOKENS]
    np.testing.assert_allclose(model_fn(params, TOKENS), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["transformer", "decoder"])
def test_stacked_layers_are_the_same_network(name):
    model_fn, params = build(name, num_layers=3)
    scanned_fn, scanned = build(name, num_layers=3, scan_layers=True)
    blocks = [params.pop(f"block_{i}") for i in range(3)]
    stacked = params | {"blocks": jax.tree.map(lambda *x: np.stack(x), *blocks)}
    jax.tree.map(np.testing.assert_array_equal, scanned, stacked)
    params |= {f"block_{i}": block for i, block in enumerate(blocks)}
    outputs, expected = scanned_fn(scanned, TOKENS), model_fn(params, TOKENS)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


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
    assert model_fn != build("decoder")[0]
    embedding = params["tokens"]["embedding"], other["tokens"]["embedding"]
    assert not np.array_equal(*embedding)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", ["transformer", "decoder"])
def test_hessian_products_agree_with_finite_differences(name, scan_layers, remat):
    ways = {"scan_layers": scan_layers, "remat": remat}
    model_fn, params = build(name, activation="gelu", **ways)
    assert_products_are_differences(
        lambda p, x: jnp.sum(model_fn(p, x) ** 2), params, TOKENS
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, r"num_heads is 3, but must divide config\.model\.width, 8"),
        ({"width": 0}, r"config\.model\.width is 0, but must be a positive integer"),
        ({"num_layers": -1}, r"config\.model\.num_layers is -1, but must be a pos"),
        ({"num_heads": 2.5}, r"config\.model\.num_heads is 2\.5, but must be a pos"),
        (
            {"name": "mlp"},
            r"name is 'mlp', but the inputs are tokens, .*'transformer', 'decoder'",
        ),
        ({"tied": True}, r"model\.tied is True, but 'transformer' has classes as out"),
        ({"vocab_size": 0}, r"'transformer', but the inputs are not tokens, .*'mlp'"),
    ],
)
def test_wrong_fields_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
