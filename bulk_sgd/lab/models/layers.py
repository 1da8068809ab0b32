"""Layers that the networks of `bulk_sgd.lab.models` share."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "gelu": jax.nn.gelu}
POOLS = {"average": jnp.mean, "max": jnp.max}


def layer(kind, fan_in: int, *args, init: str, rngs: nnx.Rngs, **options):
    """An `nnx.Linear` or `nnx.Conv`, where one output has `fan_in` inputs.

    `init` is 'lecun_normal', flax's default, or 'torch', uniform in ±1/√fan_in.
    """
    if init == "lecun_normal":
        return kind(*args, rngs=rngs, **options)
    bound = 1 / math.sqrt(fan_in)

    def uniform(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return kind(*args, kernel_init=uniform, bias_init=uniform, rngs=rngs, **options)


def convolve(inputs, kernel, strides, padding, *args, **kwargs):
    """`jax.lax.conv_general_dilated` in the layout NHWC, HWIO, NHWC.

    On a CPU it is one matrix product with the patches: XLA's CPU convolutions are slow
    inside a compiled loop. With 16 channels and 1,000 images of 28×28 a Hessian-vector
    product took 9 times as long.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(
            inputs, kernel, strides, padding, *args, **kwargs
        )
    rows, columns, depth, features = kernel.shape
    _, height, width, _ = inputs.shape
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    patches = [
        padded[:, i : i + height : strides[0], j : j + width : strides[1]]
        for i in range(rows)
        for j in range(columns)
    ]
    flat = kernel.reshape(rows * columns * depth, features)
    return jnp.concatenate(patches, axis=-1) @ flat


def conv(depth: int, features: int, *, size=3, stride=1, init: str, rngs: nnx.Rngs):
    """A convolution that divides height and width by the stride, rounding up."""
    # The same margins for every stride, as in PyTorch, where "SAME" would shift.
    padding = (((size - 1) // 2, size // 2),) * 2
    options = {"strides": stride, "padding": padding, "init": init, "rngs": rngs}
    options["conv_general_dilated"] = convolve
    return layer(nnx.Conv, size**2 * depth, depth, features, (size, size), **options)


def halve(x: jax.Array, pool: str) -> jax.Array:
    """Pools 2×2 windows of (n, height, width, depth); drops odd ends.

    On a CPU flax's max pooling makes a Hessian-vector product 1.6 to 2.3 times as slow.
    """
    n, height, width, depth = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    windows = x.reshape(n, height // 2, 2, width // 2, 2, depth)
    return POOLS[pool](windows, axis=(2, 4))
