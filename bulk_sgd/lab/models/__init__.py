"""Networks as pure functions of a plain dict of parameters.

Only this package knows flax. There is no
batch normalisation and no dropout on purpose: the Hessian of a stateful or random loss
is not well defined.
"""

import dataclasses
import itertools
import math
from typing import Any

import jax
from flax import nnx

from bulk_sgd.lab.models.convnets import VGG11, ResNet8
from bulk_sgd.lab.models.layers import ACTIVATIONS, POOLS, conv, halve, layer
from bulk_sgd.lab.models.transformer import Transformer, ViT

Params = dict[str, Any]


# Layers are attributes `dense_0`, `conv_0`, … rather than items of a list, because
# the parameters of a list have integer keys, which checkpoints turn into strings.
class MLP(nnx.Module):
    """Dense layers with an activation between them; flattens its inputs.

    Arguments are those of `build`; in_features is the size of one flattened input.

    With tanh and sizes 784-200-200-10 it is the MNIST network of Song, Ahn and Yun,
    *Does SGD really happen in tiny subspaces?*, arXiv 2405.16002, with 199,210
    parameters. Without hidden layers it is linear in its inputs.

    >>> import jax.numpy as jnp
    >>> mlp = MLP(4, (8,), 3, "tanh", init="torch", rngs=nnx.Rngs(0))
    >>> mlp(jnp.ones((5, 2, 2))).shape
    (5, 3)
    """

    def __init__(self, in_features, hidden, out_features, activation, *, init, rngs):
        self.activation = ACTIVATIONS[activation]
        self.num_hidden = len(hidden)
        sizes = (in_features, *hidden, out_features)
        for i, pair in enumerate(itertools.pairwise(sizes)):
            dense = layer(nnx.Linear, pair[0], *pair, init=init, rngs=rngs)
            setattr(self, f"dense_{i}", dense)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs (n, out_features) of inputs (n, …) with in_features each."""
        x = inputs.reshape(len(inputs), -1)
        for i in range(self.num_hidden):
            x = self.activation(getattr(self, f"dense_{i}")(x))
        return getattr(self, f"dense_{self.num_hidden}")(x)


class CNN(nnx.Module):
    """Stages of 3×3 convolution, activation and 2×2 pooling, then a dense layer.

    Two stages of width 32 with ReLU are one reading of the "3-layer CNN" of Song,
    Ahn and Yun, arXiv 2405.16002, three stages the other. A stage keeps the height
    and width in its convolution and halves them, rounding down, in its pooling.
    Arguments are those of `build`.

    >>> import jax.numpy as jnp
    >>> options = {"init": "torch", "rngs": nnx.Rngs(0)}
    >>> cnn = CNN((8, 8, 3), (4, 4), 10, "relu", "average", **options)
    >>> cnn(jnp.ones((5, 8, 8, 3))).shape
    (5, 10)
    """

    def __init__(
        self, input_shape, channels, out_features, activation, pool, *, init, rngs
    ):
        self.activation = ACTIVATIONS[activation]
        self.pool = pool
        self.num_stages = len(channels)
        height, width, depth = input_shape
        for i, features in enumerate(channels):
            setattr(self, f"conv_{i}", conv(depth, features, init=init, rngs=rngs))
            height, width, depth = height // 2, width // 2, features
        sizes = height * width * depth, out_features
        self.dense = layer(nnx.Linear, sizes[0], *sizes, init=init, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs (n, out_features) of inputs (n, height, width, depth)."""
        x = inputs
        for i in range(self.num_stages):
            x = self.activation(getattr(self, f"conv_{i}")(x))
            x = halve(x, self.pool)
        return self.dense(x.reshape(len(x), -1))


@dataclasses.dataclass(frozen=True)
class ModelFn:
    """Pure function of (params, inputs): outputs (n, classes).

    Hashable, and equal for equal configurations and shapes whatever the seed: a
    static argument of `jax.jit` as it should be.
    """

    graph: nnx.GraphDef

    def __call__(self, params: Params, inputs: jax.Array) -> jax.Array:
        return nnx.merge(self.graph, params)(inputs)


def _check(field: str, value: Any, allowed) -> None:
    if value not in allowed:
        names = ", ".join(map(repr, allowed))
        raise ValueError(
            f"config.model.{field} is {value!r}, but must be one of {names}."
        )


def _widths(field: str, value: Any) -> tuple[int, ...]:
    widths = value if isinstance(value, tuple | list) else (None,)
    if not all(isinstance(width, int) and width > 0 for width in widths):
        raise ValueError(
            f"config.model.{field} is {value!r}, but must be a tuple of positive "
            "integers."
        )
    return tuple(value)


def _positive(field: str, value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(
            f"config.model.{field} is {value!r}, but must be a positive integer."
        )
    return value


def build(
    config,
    input_shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    vocab_size: int = 0,
) -> tuple[ModelFn, Params]:
    """The network that a configuration names, and its initial parameters.

    Args:
      config: has `name`, 'mlp', 'cnn', 'vgg11', 'resnet8', 'vit', 'transformer' or
        'decoder';
        `activation`, 'tanh', 'relu' or 'gelu' (the tanh approximation); `init`,
        'lecun_normal' (flax's default, biases zero) or 'torch' (PyTorch's default:
        kernels and biases uniform in ±1/√fan_in, embeddings normal); for 'mlp'
        `hidden`, a tuple of widths; for 'cnn' `channels`, a tuple of widths, and
        `pool`, 'average' or 'max', which 'vgg11' has too; for 'vgg11' and 'resnet8'
        `width`, of the first convolution, `norm`, 'group' or 'none', and `num_groups`;
        for 'transformer', 'decoder', which is causal, and 'vit' `width`, `num_layers`,
        `num_heads`, `scan_layers` and `remat`, for 'vit' also `patch`, for the first
        two `tied`.
      input_shape: of one example; (height, width, depth) for 'cnn', 'vgg11', 'resnet8'
        and 'vit', (length,) for 'transformer' and 'decoder'.
      num_classes: width of the outputs.
      seed: non-negative; equal seeds give equal parameters.
      vocab_size: tokens are below it; 0 where inputs are no tokens.

    Returns:
      model_fn: (params, inputs (n, *input_shape)) to outputs (n, num_classes), or
        (n, length, num_classes) for 'decoder'; it is pure, works under jit, grad, vmap
        and linearize, and follows the dtype of params and of inputs that are floats.
      params: a nested dict of float32 arrays, {layer: {'kernel', 'bias'}}; the blocks
        of a transformer are dicts of layers, one by one or stacked as 'blocks'.

    Raises:
      ValueError: unknown name, activation, init or pool; widths or numbers that are
        not positive integers; an image too small for its stages; heads or groups that
        do not divide the width, patches that do not divide the image; batch
        normalisation; tokens for a network of numbers or the other way round; a
        negative seed.

    >>> import jax.numpy as jnp
    >>> from ml_collections import ConfigDict
    >>> config = ConfigDict({"name": "mlp", "hidden": (200, 200), "init": "torch"})
    >>> config.activation = "tanh"
    >>> model_fn, params = build(config, (28, 28, 1), num_classes=10, seed=0)
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    199210
    >>> jax.jit(model_fn)(params, jnp.ones((5, 28, 28, 1))).shape
    (5, 10)
    """
    _check("name", config.name, _MODELS)
    _check("activation", config.activation, ACTIVATIONS)
    _check("init", config.init, ("lecun_normal", "torch"))
    if seed < 0:
        raise ValueError(f"seed is {seed}, but must not be negative.")
    make, takes_tokens = _MODELS[config.name]
    if takes_tokens != bool(vocab_size):
        fitting = [name for name, entry in _MODELS.items() if entry[1] != takes_tokens]
        raise ValueError(
            f"config.model.name is {config.name!r}, but the inputs are "
            f"{'tokens' if vocab_size else 'not tokens'}, which are for "
            f"{', '.join(map(repr, fitting))}."
        )
    options = {"activation": config.activation, "init": config.init}
    options["rngs"] = nnx.Rngs(seed)
    if takes_tokens:
        options["vocab_size"] = vocab_size
    graph, state = nnx.split(make(config, input_shape, num_classes, **options))
    return ModelFn(graph), nnx.to_pure_dict(state)


def _mlp(config, input_shape, num_classes, **options):
    hidden = _widths("hidden", config.hidden)
    return MLP(math.prod(input_shape), hidden, num_classes, **options)


def _cnn(config, input_shape, num_classes, **options):
    channels = _widths("channels", config.channels)
    _check("pool", config.pool, POOLS)
    smallest = 2 ** len(channels)
    _check_image("channels", channels, input_shape, smallest)
    return CNN(input_shape, channels, num_classes, pool=config.pool, **options)


def _vgg11(config, input_shape, num_classes, **options):
    _check("pool", config.pool, POOLS)
    _check_image("name", config.name, input_shape, 32)
    sizes = (*_normalized(config), num_classes)
    return VGG11(input_shape, *sizes, pool=config.pool, **options)


def _resnet8(config, input_shape, num_classes, **options):
    _check_image("name", config.name, input_shape, 1)
    return ResNet8(input_shape, *_normalized(config), num_classes, **options)


def _normalized(config) -> tuple[int, int]:
    """Width and number of groups, 0 without a normalization."""
    if config.norm == "batch":
        raise ValueError(
            "config.model.norm is 'batch', but must be one of 'group', 'none': batch "
            "normalisation couples the examples of a batch, so that the loss of the "
            "data is no mean over examples and its Hessian none of theirs."
        )
    _check("norm", config.norm, ("group", "none"))
    width = _positive("width", config.width)
    if config.norm == "none":
        return width, 0
    groups = _positive("num_groups", config.num_groups)
    if width % groups:
        raise ValueError(
            f"config.model.num_groups is {groups}, but must divide config.model.width, "
            f"{width}."
        )
    return width, groups


def _check_image(field, value, input_shape, smallest):
    if len(input_shape) != 3 or min(input_shape[:2]) < smallest:
        raise ValueError(
            f"config.model.{field} is {value!r}, which takes images of at least "
            f"{smallest}×{smallest} pixels, but inputs have shape {input_shape}."
        )


def _blocks(config) -> dict[str, Any]:
    """Width, number of layers and of heads, and how they are run."""
    names = "width", "num_layers", "num_heads"
    sizes = {name: _positive(name, getattr(config, name)) for name in names}
    if sizes["width"] % sizes["num_heads"]:
        raise ValueError(
            f"config.model.num_heads is {sizes['num_heads']}, but must divide "
            f"config.model.width, {sizes['width']}."
        )
    return sizes | {name: config[name] for name in ("scan_layers", "remat")}


def _transformer(config, input_shape, num_classes, causal=False, **options):
    if config.tied and not causal:
        raise ValueError(
            f"config.model.tied is {config.tied}, but {config.name!r} has classes as "
            "outputs, not tokens; only 'decoder' can share its embeddings with them."
        )
    options |= _blocks(config) | {"causal": causal, "tied": config.tied}
    return Transformer(length=input_shape[0], out_features=num_classes, **options)


def _decoder(*args, **options):
    return _transformer(*args, causal=True, **options)


def _vit(config, input_shape, num_classes, **options):
    patch = _positive("patch", config.patch)
    _check_image("patch", patch, input_shape, patch)
    if any(side % patch for side in input_shape[:2]):
        raise ValueError(
            f"config.model.patch is {patch}, but must divide height and width of the "
            f"images, {input_shape[0]} and {input_shape[1]}."
        )
    sizes = _blocks(config)
    return ViT(input_shape, patch, out_features=num_classes, **sizes, **options)


# Whether they take tokens.
_MODELS = {
    "mlp": (_mlp, False),
    "cnn": (_cnn, False),
    "vgg11": (_vgg11, False),
    "resnet8": (_resnet8, False),
    "vit": (_vit, False),
    "transformer": (_transformer, True),
    "decoder": (_decoder, True),
}
