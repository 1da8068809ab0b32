r"""How far do seeds alone spread the outcome?

Asks for the base setting over ten seeds of parameters, batches and solver. The claims
table rests on it.

About 5 minutes with preset "cpu" on two busy CPU cores.

  python -m bulk_sgd.sweep --config=configs/ablations/seeds.py:cpu \
      --workdir=runs/seeds
  python -m bulk_sgd.report --workdir=runs/seeds
"""

from bulk_sgd.lab.sweep import grid
from configs.ablations.base import base_config, is_small


def get_config(preset: str = "cpu"):
    """The base config of the axis."""
    config = base_config(preset, "Seeds")
    config.measures.every = 100 if is_small(preset) else 1_000
    config.measures.sharpness_every = config.eval_every
    return config


def get_sweep(preset: str = "cpu"):
    """The cells of the axis."""
    is_small(preset)
    return grid.values("seed", range(10))
