"""What do wrong labels and a wider network change for scaled updates?

A function of this file makes the data; the label noise is an option of this function.
docs/own_code.md explains such options.

  python -m bulk_sgd.sweep --config=configs/label_noise.py --workdir=runs/label_noise
  python -m bulk_sgd.report --workdir=runs/label_noise
"""

import numpy as np

from bulk_sgd.lab.config import default
from bulk_sgd.lab.sweep import grid


def clumps(noise=0.0):
    """Points around 24 centres, six per class; some training labels are wrong."""
    rng = np.random.default_rng(0)
    of = rng.integers(24, size=900)
    x = rng.normal(size=(24, 8))[of] + 0.4 * rng.normal(size=(900, 8))
    wrong = rng.random(900) < noise * (np.arange(900) < 600)
    y = (of + wrong * rng.integers(1, 4, size=900)) % 4
    parts = *np.split(x, [600]), *np.split(y, [600])
    return dict(zip(("x_train", "x_test", "y_train", "y_test"), parts))


def get_config():
    config = default()
    config.name = "Label noise and width"
    config.data.name, config.data.normalization = "label_noise:clumps", "standard"
    config.data.options.noise = 0.0
    config.model.hidden = (16,)
    config.loss.name, config.optimizer.learning_rate = "cross_entropy", 0.5
    config.num_steps, config.switch.step, config.eval_every = 1000, 300, 25
    config.subspace.rank, config.subspace.refresh_every = 4, 10
    config.arms = ("sgd", "bulk_sgd", "scales(0.5, 2)")
    return config


def get_sweep():
    return grid.product(
        grid.values("data.options.noise", (0.0, 0.2)),
        grid.values("model.hidden", ((16,), (64,))),
        grid.values("seed", range(3)),
    )
