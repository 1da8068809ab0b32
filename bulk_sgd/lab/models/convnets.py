"""A plain CNN, and VGG-11 and ResNet-8 as used on 32×32 images."""

import jax
import jax.numpy as jnp
from flax import nnx

from bulk_sgd.lab.models.layers import ACTIVATIONS, conv, halve, layer


class CNN(nnx.Module):
    """Stages of 3×3 convolution, activation and 2×2 pooling, then a dense layer.

    Two stages of width 32 with ReLU are one reading of the "3-layer CNN" of Song,
    Ahn and Yun, arXiv 2405.16002; three stages are the other.
    """

    def __init__(self, input_shape, channels, out_features, activation, pool, **init):
        self.activation = ACTIVATIONS[activation]
        self.pool = pool
        self.num_stages = len(channels)
        height, width, depth = input_shape
        for i, features in enumerate(channels):
            setattr(self, f"conv_{i}", conv(depth, features, **init))
            height, width, depth = height // 2, width // 2, features
        sizes = height * width * depth, out_features
        self.dense = layer(nnx.Linear, sizes[0], *sizes, **init)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs (n, out_features) of inputs (n, height, width, depth)."""
        x = inputs
        for i in range(self.num_stages):
            x = self.activation(getattr(self, f"conv_{i}")(x))
            x = halve(x, self.pool)
        return self.dense(x.reshape(len(x), -1))


# Widths in units of the first, and the convolutions before each pooling.
_VGG11 = ((1,), (2,), (4, 4), (8, 8), (8, 8))


def _norm(features, num_groups, rngs):
    if not num_groups:
        return jax.nn.identity
    # The mean of squares minus the squared mean loses digits that curvature needs.
    return nnx.GroupNorm(features, num_groups, use_fast_variance=False, rngs=rngs)


class VGG11(nnx.Module):
    """Eight 3×3 convolutions, each normalised and activated, and one dense layer.

    2×2 pooling follows the first, second, fourth, sixth and eighth, which have 1, 2, 4,
    8 and 8 times the given width: Simonyan and Zisserman, arXiv 1409.1556,
    configuration A, with one dense layer instead of three, as is usual on 32×32 images.
    """

    def __init__(
        self, input_shape, width, num_groups, out_features, activation, pool, **init
    ):
        self.activation = ACTIVATIONS[activation]
        self.pool = pool
        height, columns, depth = input_shape
        for i, factors in enumerate(_VGG11):
            for j, factor in enumerate(factors):
                made = conv(depth, factor * width, **init)
                setattr(self, f"conv_{i}_{j}", made)
                depth = factor * width
                setattr(self, f"norm_{i}_{j}", _norm(depth, num_groups, init["rngs"]))
            height, columns = height // 2, columns // 2
        size = height * columns * depth
        self.dense = layer(nnx.Linear, size, size, out_features, **init)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs (n, out_features) of inputs (n, height, width, depth)."""
        x = inputs
        for i, factors in enumerate(_VGG11):
            for j in range(len(factors)):
                x = getattr(self, f"conv_{i}_{j}")(x)
                x = self.activation(getattr(self, f"norm_{i}_{j}")(x))
            x = halve(x, self.pool)
        return self.dense(x.reshape(len(x), -1))


class Residual(nnx.Module):
    """Two 3×3 convolutions and a shortcut, projected where shapes differ."""

    def __init__(self, depth, features, num_groups, activation, *, stride, init, rngs):
        self.activation = ACTIVATIONS[activation]
        self.projects = stride > 1 or depth != features
        options = {"init": init, "rngs": rngs}
        self.conv_0 = conv(depth, features, stride=stride, **options)
        self.norm_0 = _norm(features, num_groups, rngs)
        self.conv_1 = conv(features, features, **options)
        self.norm_1 = _norm(features, num_groups, rngs)
        if self.projects:
            self.conv_2 = conv(depth, features, size=1, stride=stride, **options)
            self.norm_2 = _norm(features, num_groups, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs (n, …, features) of x (n, height, width, depth)."""
        y = self.activation(self.norm_0(self.conv_0(x)))
        y = self.norm_1(self.conv_1(y))
        if self.projects:
            x = self.norm_2(self.conv_2(x))
        return self.activation(x + y)


class ResNet8(nnx.Module):
    """A 3×3 convolution, three residual units, the mean over pixels, a dense layer.

    The units have 1, 2 and 4 times the given width, the last two stride 2: He et al.,
    arXiv 1512.03385, section 4.2 with n = 1, and projections as shortcuts.
    """

    def __init__(
        self, input_shape, width, num_groups, out_features, activation, *, init, rngs
    ):
        self.activation = ACTIVATIONS[activation]
        options = {"init": init, "rngs": rngs}
        self.conv = conv(input_shape[-1], width, **options)
        self.norm = _norm(width, num_groups, rngs)
        sizes = (width, width, 2 * width, 4 * width)
        for i in range(3):
            sides = sizes[i], sizes[i + 1], num_groups, activation
            unit = Residual(*sides, stride=2 if i else 1, **options)
            setattr(self, f"block_{i}", unit)  # a name that checkpoints have
        self.dense = layer(nnx.Linear, sizes[3], sizes[3], out_features, **options)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs (n, out_features) of inputs (n, height, width, depth)."""
        x = self.activation(self.norm(self.conv(inputs)))
        for i in range(3):
            x = getattr(self, f"block_{i}")(x)
        return self.dense(jnp.mean(x, axis=(1, 2)))
