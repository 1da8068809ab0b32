"""VGG-11 and ResNet-8 in the sizes used on 32×32 images, with group normalisation."""

import jax
import jax.numpy as jnp
from flax import nnx

from bulk_sgd.lab.models.layers import ACTIVATIONS, conv, halve, layer

# Widths in units of the first, and the convolutions before each pooling.
_VGG11 = ((1,), (2,), (4, 4), (8, 8), (8, 8))


def _identity(x):
    return x


def _norm(features, num_groups, rngs):
    if not num_groups:
        return _identity
    # Means of squares minus squared means would lose digits, which curvature needs.
    options = {"use_fast_variance": False, "rngs": rngs}
    return nnx.GroupNorm(features, num_groups, **options)


class VGG11(nnx.Module):
    """Eight 3×3 convolutions, each normalised and activated, and one dense layer.

    2×2 pooling after the first, second, fourth, sixth and eighth, which have 1, 2, 4, 8
    and 8 times the given width: Simonyan and Zisserman, arXiv 1409.1556, configuration
    A, with one dense layer instead of three, as is usual on 32×32 images.

    Arguments are those of `models.build`; num_groups is that of a group normalisation,
    0 for none.

    >>> options = {"init": "torch", "rngs": nnx.Rngs(0)}
    >>> vgg = VGG11((32, 32, 3), 4, 2, 10, "relu", "max", **options)
    >>> vgg(jnp.ones((5, 32, 32, 3))).shape
    (5, 10)
    """

    def __init__(
        self,
        input_shape,
        width,
        num_groups,
        out_features,
        activation,
        pool,
        *,
        init,
        rngs,
    ):
        self.activation = ACTIVATIONS[activation]
        self.pool = pool
        height, columns, depth = input_shape
        names = []
        for i, factors in enumerate(_VGG11):
            for j, factor in enumerate(factors):
                names.append(f"{i}_{j}")
                made = conv(depth, factor * width, init=init, rngs=rngs)
                setattr(self, f"conv_{names[-1]}", made)
                depth = factor * width
                setattr(self, f"norm_{names[-1]}", _norm(depth, num_groups, rngs))
            height, columns = height // 2, columns // 2
        size = height * columns * depth
        self.dense = layer(nnx.Linear, size, size, out_features, init=init, rngs=rngs)

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
    """Two 3×3 convolutions around which the inputs are added, projected if need be.

    With stride 2 height and width are halved, rounding up.

    >>> options = {"stride": 2, "init": "torch", "rngs": nnx.Rngs(0)}
    >>> Residual(4, 8, 2, "relu", **options)(jnp.ones((5, 9, 8, 4))).shape
    (5, 5, 4, 8)
    """

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
    """A 3×3 convolution, three residual blocks, the mean over pixels, a dense layer.

    The blocks have 1, 2 and 4 times the given width, the last two stride 2: He et al.,
    arXiv 1512.03385, section 4.2 with n = 1, and projections as shortcuts.

    Arguments are those of `VGG11`, without pooling.

    >>> options = {"init": "torch", "rngs": nnx.Rngs(0)}
    >>> resnet = ResNet8((32, 32, 3), 4, 2, 10, "relu", **options)
    >>> resnet(jnp.ones((5, 32, 32, 3))).shape
    (5, 10)
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
            block = Residual(*sides, stride=2 if i else 1, **options)
            setattr(self, f"block_{i}", block)
        self.dense = layer(nnx.Linear, sizes[3], sizes[3], out_features, **options)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs (n, out_features) of inputs (n, height, width, depth)."""
        x = self.activation(self.norm(self.conv(inputs)))
        for i in range(3):
            x = getattr(self, f"block_{i}")(x)
        return self.dense(jnp.mean(x, axis=(1, 2)))
