"""What a user's module may hold, for tests of import paths in a config."""

import itertools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from optax import contrib

import bulk_sgd
from bulk_sgd.lab.data import npz
from bulk_sgd.lab.from_config.losses import SquaredError
from bulk_sgd.lab.models.mlp import MLP

# The same as the entries of the registries in a tiny run.


def mlp(input_shape, num_classes, rngs, width=1):
    size = int(np.prod(input_shape))
    return MLP(size, (width,), num_classes, "tanh", init="lecun_normal", rngs=rngs)


def squared_error(outputs, targets, reduction="mean"):
    return SquaredError(10, reduction)(outputs, targets)


def images():
    with np.load(npz._MNIST) as file:
        return dict(file)


def sgd(learning_rate, momentum):
    return optax.sgd(learning_rate, momentum)


def sam(learning_rate, key, rho=0.05):
    del key
    ascent = optax.chain(contrib.normalize(), optax.sgd(rho))
    transform = contrib.sam(optax.sgd(learning_rate), ascent, opaque_mode=True)
    return transform, lambda loss: {"grad_fn": lambda params, _: jax.grad(loss)(params)}


def solver(tol, max_matvecs):
    return bulk_sgd.lanczos(tol, max_matvecs)


def train_loss(objective, params):
    return objective(params)


def in_subspace(params, subspace, objective):
    gradient = jax.grad(objective)(params)
    return {"chi": subspace.alignment(gradient), "sizes": jnp.ones(3)}


def moved(params, start, step, order=2):
    changes = optax.tree.sub(params, start)
    return {"length": optax.tree.norm(changes, ord=order), "step": step}


# Networks of every kind, of features (3,) or any.


class Stacked(nnx.Module):
    def __init__(self, input_shape, num_classes, rngs, sizes=(4, 4)):
        sizes = (*input_shape, *sizes, num_classes)
        layers = [nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)]
        self.layers = nnx.List(layers)
        self.scale = np.full(1, 2.0, np.float32)

    def __call__(self, x):
        x = self.scale * x
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x


class Linen(nn.Module):
    num_classes: int
    width: int = 4

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(nn.tanh(nn.Dense(self.width)(x)))


def equinox(input_shape, num_classes, key, depth=1):
    return eqx.nn.MLP(*input_shape, num_classes, 4, depth, key=key)


def pair(input_shape, num_classes):
    def init(key):
        return [jax.random.normal(key, (*input_shape, num_classes)), np.zeros(1)]

    return init, lambda params, x: x @ params[0] + params[1]


def from_torch(arrays):
    return [arrays["weight"].T, arrays["bias"]]


def ordinal(outputs, targets):
    above = targets[:, None] > jnp.arange(outputs.shape[1])
    return optax.sigmoid_binary_cross_entropy(outputs, above).sum(axis=1)


# And what does not work.


def with_dropout(num_classes, rngs):
    return nnx.Sequential(
        nnx.Linear(3, num_classes, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
    )


def without_any():
    return lambda key: {}, lambda params, inputs: inputs


def with_averages(num_classes):
    return nn.Sequential([nn.BatchNorm(True), nn.Dense(num_classes)])


def two(input_shape, key):
    return eqx.nn.MLP(*input_shape, 2, 4, 1, key=key)


def single(input_shape, key):
    return eqx.nn.MLP(*input_shape, 1, 4, 1, key=key)


def flat(input_shape, key):
    return eqx.nn.MLP(*input_shape, "scalar", 4, 1, key=key)


def _ends(input_shape, num_classes, change):
    init, apply = pair(input_shape, num_classes)
    return init, lambda params, x: change(apply(params, x))


def deep(input_shape, num_classes):
    return _ends(input_shape, num_classes, lambda x: x[:, None])


def couple(input_shape, num_classes):
    return _ends(input_shape, num_classes, lambda x: (x, x))


def distance(outputs, targets):
    losses = (outputs - targets[:, None]) ** 2
    return losses[:, 0] if outputs.shape[1] == 1 else losses


def returns_str():
    return "text"


def returns_NoneType():
    return None


def returns_dict():
    return {"a": {"b": 1}}


def branches(params):
    if optax.tree.norm(params) > 1:
        return 1
    return 2


def in_numpy(params):
    return np.linalg.norm(np.asarray(params["dense_0"]["kernel"]))


def misspells(params):
    return params["dense_0"]["kernle"].sum()


def number():
    return 1


def total(outputs, targets):
    return squared_error(outputs, targets, "sum").sum()


def broken(outputs, targets):
    return outputs @ targets[None]


def wants(more):
    return more
