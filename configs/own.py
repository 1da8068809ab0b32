"""Data, network, loss and measurement of one's own: docs/own_code.md."""

import numpy as np
import optax
from flax import nnx

from bulk_sgd.lab.config import default


def spirals():  # the path of an .npz with these arrays would do as well
    turn, y = np.random.default_rng(0).random(300), np.arange(300) % 2
    x = (turn * [np.cos(6 * turn + 3 * y), np.sin(6 * turn + 3 * y)]).T
    parts = *np.split(x, [200]), *np.split(y, [200])
    return dict(zip(("x_train", "x_test", "y_train", "y_test"), parts))


class Net(nnx.Module):
    def __init__(self, num_classes, rngs, width=16):
        self.hidden = nnx.Linear(2, width, rngs=rngs)
        self.out = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.gelu(self.hidden(3 * x)))


def hinge(outputs, labels, power=2):  # one loss per example
    return optax.losses.multiclass_hinge_loss(outputs, labels) ** power


def weight_norm(params):  # or of `start`, `step`, `subspace`, `objective` too
    return optax.tree.norm(params)


def get_config():
    config = default()
    config.data.name, config.data.normalization = "own:spirals", "standard"
    config.model.name, config.model.options.width = "own:Net", 32
    config.loss.name, config.measures.own = "own:hinge", ("own:weight_norm",)
    config.num_steps, config.switch.step, config.subspace.rank = 400, 200, 2
    return config
