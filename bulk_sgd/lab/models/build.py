"""From the fields of `config.model` to a network."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bulk_sgd import checks
from bulk_sgd.lab import plugins
from bulk_sgd.lab.models.convnets import CNN, VGG11, ResNet8
from bulk_sgd.lab.models.functional import functional
from bulk_sgd.lab.models.layers import ACTIVATIONS, POOLS
from bulk_sgd.lab.models.mlp import MLP
from bulk_sgd.lab.models.transformer import Transformer, ViT

Params = dict[str, Any]


def build_model(
    config,
    input_shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    vocab_size: int = 0,
) -> tuple[plugins.Function, Params]:
    """The network that a config names, and its initial parameters.

    Args:
      config: `config.model`; `bulk_sgd.lab.config` lists its fields. 'gelu' is the tanh
        approximation; 'lecun_normal', flax's default, has zero biases; 'torch',
        PyTorch's default, draws kernels and biases uniformly in ±1/√fan_in. A name that
        is an import path makes any network that `functional` takes.
      input_shape: of one example; (height, width, depth) of an image, (length,) of a
        text; the MLP takes any.
      num_classes: width of the outputs.
      seed: non-negative; equal seeds give equal parameters.
      vocab_size: tokens are below it; 0 if inputs are not tokens.

    Returns:
      model_fn: (params, inputs (n, *input_shape)) to outputs (n, num_classes), or
        (n, length, num_classes) for 'decoder'. It is pure and follows the dtype of
        params and of inputs that are floats. It is hashable, and equal whatever the
        seed: a static argument of `jax.jit`.
      params: a nested dict of float32 arrays, {layer: {'kernel', 'bias'}}; transformers
        have dicts of them, 'block_0', … or, stacked, 'blocks'.

    Raises:
      ValueError: a field is wrong or does not fit the inputs.

    >>> import jax.numpy as jnp
    >>> from ml_collections import ConfigDict
    >>> config = ConfigDict({"name": "mlp", "hidden": (200, 200), "init": "torch"})
    >>> config.activation = "tanh"
    >>> model_fn, params = build_model(config, (28, 28, 1), num_classes=10, seed=0)
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    199210
    >>> jax.jit(model_fn)(params, jnp.ones((5, 28, 28, 1))).shape
    (5, 10)
    """
    field = "config.model.name"
    make, takes_tokens = plugins.entry(field, config.name, _MODELS, _own)
    checks.integer("seed", seed, 0)
    if takes_tokens not in (None, bool(vocab_size)):
        fitting = [name for name, entry in _MODELS.items() if entry[1] != takes_tokens]
        raise ValueError(
            f"config.model.name is {config.name!r}, but the inputs are "
            f"{'tokens' if vocab_size else 'not tokens'}, which are for "
            f"{', '.join(map(repr, fitting))}."
        )
    network = make(config, input_shape, num_classes, seed, vocab_size)
    dtype = jnp.int32 if vocab_size else jnp.float32
    example = jax.ShapeDtypeStruct((1, *input_shape), dtype)
    with plugins.telling(field, config.name):
        apply, params = functional(network, seed, example)
    words = plugins.words(config, input_shape, num_classes, vocab_size)
    return plugins.Function(words, apply), params


def _own(path):
    def make(config, input_shape, num_classes, seed, vocab_size):
        offered = {"input_shape": input_shape, "num_classes": num_classes}
        offered |= {"vocab_size": vocab_size, "rngs": nnx.Rngs(seed)}
        offered["key"] = jax.random.key(seed)
        return plugins.call("config.model.name", path, config.options, **offered)

    return make, None


def _shipped(make, takes_tokens=False):
    """The entry of one of the networks here, with the fields that they share."""

    def build(config, input_shape, num_classes, seed, vocab_size):
        checks.one_of("config.model.activation", config.activation, ACTIVATIONS)
        checks.one_of("config.model.init", config.init, ("lecun_normal", "torch"))
        options = {"activation": config.activation, "init": config.init}
        options["rngs"] = nnx.Rngs(seed)
        if takes_tokens:
            options["vocab_size"] = vocab_size
        return make(config, input_shape, num_classes, **options)

    return build, takes_tokens


def _mlp(config, input_shape, num_classes, **options):
    hidden = _widths("hidden", config.hidden)
    return MLP(math.prod(input_shape), hidden, num_classes, **options)


def _cnn(config, input_shape, num_classes, **options):
    channels = _widths("channels", config.channels)
    checks.one_of("config.model.pool", config.pool, POOLS)
    _check_image("channels", channels, input_shape, 2 ** len(channels))
    return CNN(input_shape, channels, num_classes, pool=config.pool, **options)


def _vgg11(config, input_shape, num_classes, **options):
    checks.one_of("config.model.pool", config.pool, POOLS)
    _check_image("name", config.name, input_shape, 32)
    sizes = (*_normalized(config), num_classes)
    return VGG11(input_shape, *sizes, pool=config.pool, **options)


def _resnet8(config, input_shape, num_classes, **options):
    _check_image("name", config.name, input_shape, 1)
    return ResNet8(input_shape, *_normalized(config), num_classes, **options)


def _vit(config, input_shape, num_classes, **options):
    checks.integer("config.model.patch", config.patch, 1)
    _check_image("patch", config.patch, input_shape, config.patch)
    if any(side % config.patch for side in input_shape[:2]):
        raise ValueError(
            f"config.model.patch is {config.patch}; it must divide height and width of "
            f"the images, {input_shape[0]} and {input_shape[1]}."
        )
    sizes = _depth(config)
    return ViT(input_shape, config.patch, out_features=num_classes, **sizes, **options)


def _transformer(config, input_shape, num_classes, causal=False, **options):
    if config.tied and not causal:
        raise ValueError(
            f"config.model.tied is {config.tied}, but {config.name!r} has classes as "
            "outputs, not tokens; only 'decoder' can share its embeddings with them."
        )
    options |= _depth(config) | {"causal": causal, "tied": config.tied}
    return Transformer(length=input_shape[0], out_features=num_classes, **options)


# Each with whether it takes tokens; None if it may.
_MODELS = {
    "mlp": _shipped(_mlp),
    "cnn": _shipped(_cnn),
    "vgg11": _shipped(_vgg11),
    "resnet8": _shipped(_resnet8),
    "vit": _shipped(_vit),
    "transformer": _shipped(_transformer, takes_tokens=True),
    "decoder": _shipped(functools.partial(_transformer, causal=True), True),
}


def _widths(field: str, value: Any) -> tuple[int, ...]:
    widths = value if isinstance(value, tuple | list) else (None,)
    if not all(isinstance(width, int) and width > 0 for width in widths):
        raise ValueError(
            f"config.model.{field} is {value!r}; it must be a tuple of positive "
            "integers."
        )
    return tuple(value)


def _check_image(field, value, input_shape, smallest):
    if len(input_shape) != 3 or min(input_shape[:2]) < smallest:
        raise ValueError(
            f"config.model.{field} is {value!r}, which takes images of at least "
            f"{smallest}×{smallest} pixels, but inputs have shape {input_shape}."
        )


def _normalized(config) -> tuple[int, int]:
    """Width and number of groups, 0 without a normalization."""
    if config.norm == "batch":
        raise ValueError(
            "config.model.norm is 'batch'; it must be one of group, none: batch "
            "normalisation couples the examples of a batch, so neither the loss nor "
            "its Hessian is a mean over examples."
        )
    checks.one_of("config.model.norm", config.norm, ("group", "none"))
    checks.integer("config.model.width", config.width, 1)
    if config.norm == "none":
        return config.width, 0
    checks.integer("config.model.num_groups", config.num_groups, 1)
    _check_divides_width("num_groups", config)
    return config.width, config.num_groups


def _depth(config) -> dict[str, Any]:
    """Width, number of layers and of heads, and how the layers are run."""
    names = "width", "num_layers", "num_heads"
    for name in names:
        checks.integer(f"config.model.{name}", config[name], 1)
    _check_divides_width("num_heads", config)
    return {name: config[name] for name in (*names, "scan_layers", "remat")}


def _check_divides_width(field: str, config):
    if config.width % config[field]:
        raise ValueError(
            f"config.model.{field} is {config[field]}; it must divide "
            f"config.model.width, {config.width}."
        )
