"""Networks with random parameters, and their Hessian; shared by the tests."""

import math

import jax
import numpy as np
from ml_collections import ConfigDict

from bulk_sgd.lab.models.build import build_model


def network(fields, input_shape, num_classes, vocab_size=0):
    """A model_fn and random parameters, of which none is zero or one.

    NumPy draws them: JAX compiles a program for each shape.
    """
    made = []

    def init():
        model_fn, params = build_model(
            ConfigDict(fields), input_shape, num_classes, 0, vocab_size
        )
        made.append(model_fn)
        return params

    shapes = jax.eval_shape(init)
    rng = np.random.default_rng(0)

    def draw(leaf):
        fan_in = math.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 4
        values = rng.standard_normal(leaf.shape) / math.sqrt(fan_in)
        return values.astype(leaf.dtype)

    return made[0], jax.tree.map(draw, shapes)


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def norm(layer, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * layer["scale"] + layer["bias"]


def block(layer, x, visible):
    """A layer of a transformer of width 8, head by head; True where i sees j."""
    mixed = dense(layer["attention_in"], norm(layer["norm_attention"], x))
    seen = []
    for head in range(2):
        query, key, value = (mixed[:, 8 * i + 4 * head :][:, :4] for i in range(3))
        weights = np.exp(query @ key.T / 2) * visible
        seen.append(weights / weights.sum(1, keepdims=True) @ value)
    x = x + dense(layer["attention_out"], np.concatenate(seen, axis=1))
    hidden = np.maximum(dense(layer["dense_in"], norm(layer["norm_dense"], x)), 0)
    return x + dense(layer["dense_out"], hidden)


def exact(params):
    """Parameters in float64."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def hessian_product(value_fn, params, data, under_vmap=False):
    """The product of the Hessian of `value_fn(params, data)` with cos(params)."""

    @jax.jit
    def product(params, vector, data):
        _, apply = jax.linearize(jax.grad(lambda p: value_fn(p, data)), params)
        if not under_vmap:
            return apply(vector)
        one = jax.tree.map(lambda leaf: leaf[None], vector)
        return jax.tree.map(lambda leaf: leaf[0], jax.vmap(apply)(one))

    with jax.enable_x64(True):
        params = exact(params)
        return product(params, jax.tree.map(np.cos, params), data)


def assert_product_is_difference(product, value_fn, params, data, rtol=1e-4):
    """A `hessian_product` agrees with a difference of the gradient.

    In float64, where central differences with step 1e-6 err by about 1e-16 / 1e-6.
    """
    params = exact(params)
    step = jax.tree.map(lambda leaf: 1e-6 * np.cos(leaf), params)
    with jax.enable_x64(True):
        grad = jax.jit(jax.grad(value_fn))
        up = grad(jax.tree.map(np.add, params, step), data)
        down = grad(jax.tree.map(np.subtract, params, step), data)
    difference = jax.tree.map(lambda a, b: (a - b) / 2e-6, *map(exact, (up, down)))
    for left, right in zip(*map(jax.tree.leaves, (product, difference))):
        assert left.dtype == np.float64
        np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol)
