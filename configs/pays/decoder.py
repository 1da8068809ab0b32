r"""Does it pay on a small language model? Every (a, b) at its own best learning rate.

The network and data of `configs/char_lm.py`: nine sonnets, two blocks of width 64,
cross-entropy, batch 16. `configs/pays/base.py` has the protocol and the presets.

  python -m bulk_sgd.sweep --config=configs/pays/decoder.py:momentum \
      --workdir=runs/pays/decoder-momentum
  python -m bulk_sgd.report --workdir=runs/pays/decoder-momentum
"""

from configs.char_lm import get_config as char_lm
from configs.pays.base import Pays

pays = Pays(char_lm, num_steps=500)
get_config, get_sweep, tune = pays.get_config, pays.get_sweep, pays.tune
