r"""Does it pay on a small transformer? Every (a, b) at its own best learning rate.

The network and data of `configs/vit_mnist.py`: MNIST-5k, two blocks of width 32,
cross-entropy, batch 50. `configs/pays/base.py` has the protocol and the presets.

  python -m bulk_sgd.sweep --config=configs/pays/vit.py:momentum \
      --workdir=runs/pays/vit-momentum
  python -m bulk_sgd.report --workdir=runs/pays/vit-momentum
"""

from configs.pays.base import Pays
from configs.vit_mnist import get_config as vit_mnist

pays = Pays(vit_mnist, num_steps=500)
get_config, get_sweep, tune = pays.get_config, pays.get_sweep, pays.tune
