"""Networks as pure functions of a plain dict of parameters.

Only this file knows flax. There is no batch normalisation and no dropout on
purpose: the Hessian of a stateful or random loss is not well defined.
"""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Params = dict[str, dict[str, jax.Array]]

_ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "gelu": jax.nn.gelu}
_POOLS = {"average": jnp.mean, "max": jnp.max}


def _layer(kind, fan_in: int, *args, init: str, rngs: nnx.Rngs, **options):
    if init == "lecun_normal":
        return kind(*args, rngs=rngs, **options)
    bound = 1 / math.sqrt(fan_in)

    def uniform(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return kind(*args, kernel_init=uniform, bias_init=uniform, rngs=rngs, **options)


def _convolve(inputs, kernel, *args, **kwargs):
    """Stride-1 SAME convolution, on a CPU as one product with the patches.

    Inside a compiled loop XLA's CPU convolutions lose most of their speed: with 16
    channels and 1,000 images of 28x28 a Hessian-vector product took 9 times as long.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(inputs, kernel, *args, **kwargs)
    rows, columns, depth, features = kernel.shape
    _, height, width, _ = inputs.shape
    margins = [((size - 1) // 2, size // 2) for size in (rows, columns)]
    padded = jnp.pad(inputs, ((0, 0), *margins, (0, 0)))
    patches = [
        padded[:, i : i + height, j : j + width]
        for i in range(rows)
        for j in range(columns)
    ]
    flat = kernel.reshape(rows * columns * depth, features)
    return jnp.concatenate(patches, axis=-1) @ flat


# Layers are attributes `dense_0`, `conv_0`, … rather than items of a list, because
# the parameters of a list have integer keys, which checkpoints turn into strings.
class MLP(nnx.Module):
    """Dense layers with an activation between them; flattens its inputs.

    Arguments are those of `build`; in_features is the size of one flattened input.

    With tanh and sizes 784-200-200-10 it is the MNIST network of Song, Ahn and Yun,
    *Does SGD really happen in tiny subspaces?*, arXiv 2405.16002, with 199,210
    parameters. Without hidden layers it is linear in its inputs.

    >>> mlp = MLP(4, (8,), 3, "tanh", init="torch", rngs=nnx.Rngs(0))
    >>> mlp(jnp.ones((5, 2, 2))).shape
    (5, 3)
    """

    def __init__(self, in_features, hidden, out_features, activation, *, init, rngs):
        self.activation = _ACTIVATIONS[activation]
        self.num_hidden = len(hidden)
        sizes = (in_features, *hidden, out_features)
        for i, pair in enumerate(itertools.pairwise(sizes)):
            dense = _layer(nnx.Linear, pair[0], *pair, init=init, rngs=rngs)
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

    >>> options = {"init": "torch", "rngs": nnx.Rngs(0)}
    >>> cnn = CNN((8, 8, 3), (4, 4), 10, "relu", "average", **options)
    >>> cnn(jnp.ones((5, 8, 8, 3))).shape
    (5, 10)
    """

    def __init__(
        self, input_shape, channels, out_features, activation, pool, *, init, rngs
    ):
        self.activation = _ACTIVATIONS[activation]
        self.pool = _POOLS[pool]
        self.num_stages = len(channels)
        height, width, depth = input_shape
        for i, features in enumerate(channels):
            sizes = depth, features, (3, 3)
            options = {"conv_general_dilated": _convolve}
            conv = _layer(nnx.Conv, 9 * depth, *sizes, init=init, rngs=rngs, **options)
            setattr(self, f"conv_{i}", conv)
            height, width, depth = height // 2, width // 2, features
        sizes = height * width * depth, out_features
        self.dense = _layer(nnx.Linear, sizes[0], *sizes, init=init, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs (n, out_features) of inputs (n, height, width, depth)."""
        x = inputs
        for i in range(self.num_stages):
            x = self.activation(getattr(self, f"conv_{i}")(x))
            # Blocks rather than flax's windows, through which a product with the
            # Hessian takes 1.6 to 2.3 times as long for max pooling on a CPU.
            n, height, width, depth = x.shape
            x = x[:, : height // 2 * 2, : width // 2 * 2]
            blocks = x.reshape(n, height // 2, 2, width // 2, 2, depth)
            x = self.pool(blocks, axis=(2, 4))
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


def build(
    config, input_shape: tuple[int, ...], num_classes: int, seed: int
) -> tuple[ModelFn, Params]:
    """The network that a configuration names, and its initial parameters.

    Args:
      config: has `name`, 'mlp' or 'cnn'; `activation`, 'tanh', 'relu' or 'gelu'
        (the tanh approximation); `init`, 'lecun_normal' (flax's default, biases
        zero) or 'torch' (PyTorch's default: kernels and biases uniform in
        ±1/√fan_in); for 'mlp' `hidden`, a tuple of widths; for 'cnn' `channels`, a
        tuple of widths, and `pool`, 'average' or 'max'.
      input_shape: of one example; (height, width, depth) for 'cnn'.
      num_classes: width of the outputs.
      seed: non-negative; equal seeds give equal parameters.

    Returns:
      model_fn: (params, inputs (n, *input_shape)) to outputs (n, num_classes); it
        is pure, works under jit, grad, vmap and linearize, and follows the dtype
        of params and inputs.
      params: a nested dict of float32 arrays, {layer: {'kernel', 'bias'}}.

    Raises:
      ValueError: unknown name, activation, init or pool; widths that are not
        positive integers; an image too small for its stages; a negative seed.

    >>> from ml_collections import ConfigDict
    >>> config = ConfigDict({"name": "mlp", "hidden": (200, 200), "init": "torch"})
    >>> config.activation = "tanh"
    >>> model_fn, params = build(config, (28, 28, 1), num_classes=10, seed=0)
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    199210
    >>> jax.jit(model_fn)(params, jnp.ones((5, 28, 28, 1))).shape
    (5, 10)
    """
    _check("name", config.name, ("mlp", "cnn"))
    _check("activation", config.activation, _ACTIVATIONS)
    _check("init", config.init, ("lecun_normal", "torch"))
    if seed < 0:
        raise ValueError(f"seed is {seed}, but must not be negative.")
    options = {"activation": config.activation, "init": config.init}
    options["rngs"] = nnx.Rngs(seed)
    if config.name == "mlp":
        hidden = _widths("hidden", config.hidden)
        model = MLP(math.prod(input_shape), hidden, num_classes, **options)
    else:
        channels = _widths("channels", config.channels)
        _check("pool", config.pool, _POOLS)
        smallest = 2 ** len(channels)
        if len(input_shape) != 3 or min(input_shape[:2]) < smallest:
            raise ValueError(
                f"config.model.channels is {channels}, which takes images of at least "
                f"{smallest}×{smallest} pixels, but inputs have shape {input_shape}."
            )
        options["pool"] = config.pool
        model = CNN(input_shape, channels, num_classes, **options)
    graph, state = nnx.split(model)
    return ModelFn(graph), nnx.to_pure_dict(state)
