r"""Does it pay on a small tanh network? Every (a, b) at its own best learning rate.

MNIST-5k, tanh network 784-100-100-10, cross-entropy, batch 50, without a warm-up.
`configs/pays/base.py` has the rest of the protocol, and the presets.

  python -m bulk_sgd.sweep --config=configs/pays/mnist.py:momentum \
      --workdir=runs/pays/momentum
  python -m bulk_sgd.report --workdir=runs/pays/momentum

The arm "sgd", (a, b) = (1, 1), is the plain inner optimizer. The report compares the
other arms with it.
"""

from bulk_sgd.lab.config import default
from configs.pays.base import ARMS, Pays


def _task():
    config = default()
    config.name = "MNIST-5k, tanh MLP"
    config.model.hidden = (100, 100)
    return config


pays = Pays(
    _task,
    num_steps=1_500,
    rates={
        "sgd": (0.1, 0.2, 0.4, 0.8),
        "momentum": (0.01, 0.02, 0.04, 0.08, 0.16),
        "adamw": (0.0005, 0.001, 0.002, 0.004),
        "muon": (0.005, 0.01, 0.02, 0.04),
    },
    warmup=False,
    arms=(*ARMS, "scales(0.5, 1)", "scales(0.25, 4)"),
    own_metric=True,
)
get_config, get_sweep, tune = pays.get_config, pays.get_sweep, pays.tune
