r"""Does it pay in seconds? Larger batches, so that a projection costs less than a step.

MNIST-5k, tanh network 784-200-200-10, cross-entropy, batch 250, without a warm-up.
`configs/pays/base.py` has the rest of the protocol, and the presets.

  python -m bulk_sgd.sweep --config=configs/pays/mnist_batch_250.py:sgd \
      --workdir=runs/pays/sgd_250
  python -m bulk_sgd.report --workdir=runs/pays/sgd_250
"""

from bulk_sgd.lab.config import default
from configs.pays.base import Pays


def _task():
    config = default()
    config.name = "MNIST-5k, tanh MLP, batch 250"
    config.model.hidden = (200, 200)
    config.batch_size = 250
    return config


pays = Pays(
    _task,
    num_steps=1_000,
    rates={
        "sgd": (0.2, 0.4, 0.8),
        "momentum": (0.04, 0.08, 0.16),
        "adamw": (0.001, 0.002, 0.004),
        "muon": (0.01, 0.02, 0.04),
    },
    warmup=False,
    arms=("sgd", "scales(0.25, 2)", "accelerated"),
)
get_config, get_sweep, tune = pays.get_config, pays.get_sweep, pays.tune
