r"""Does it pay on a small CNN? Every (a, b) at its own best learning rate.

The network and data of `configs/mnist_cnn.py`: MNIST-5k, two convolutions, ReLU,
cross-entropy, batch 50. `configs/pays/base.py` has the protocol and the presets.

  python -m bulk_sgd.sweep --config=configs/pays/cnn.py:momentum \
      --workdir=runs/pays/cnn-momentum
  python -m bulk_sgd.report --workdir=runs/pays/cnn-momentum
"""

from configs.mnist_cnn import get_config as mnist_cnn
from configs.pays.base import Pays


def _task():
    config = mnist_cnn()
    # On CPUs, convolving all 5,000 images at once takes three times as long as in parts
    # of 50. On an accelerator, set 0: all images at once.
    config.microbatch_size = 50
    return config


pays = Pays(_task, num_steps=500)
get_config, get_sweep, tune = pays.get_config, pays.get_sweep, pays.tune
