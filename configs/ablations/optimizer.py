r"""Does the split help other optimizers, and where does it belong?

Asks how SGD, momentum, Adam, SAM and Muon fare with their update split, and with the
gradient that they are fed split. Expected: the update of an adaptive method lies
mostly in the bulk, so that its split changes less than that of SGD.

About 8 minutes with preset "cpu" on two busy CPU cores.

  python -m bulk_sgd.sweep --config=configs/ablations/optimizer.py:cpu \
      --workdir=runs/optimizer
  python -m bulk_sgd.report --workdir=runs/optimizer
"""

from bulk_sgd.lab.sweep import grid
from configs.ablations.base import SEEDS, base_config, is_small


def get_config(preset: str = "cpu"):
    """The base config of the axis."""
    config = base_config(preset, "Inner optimizer")
    config.stability.rounds = 0
    return config


def get_sweep(preset: str = "cpu"):
    """The cells of the axis."""
    scale = 1 if is_small(preset) else 0.1
    optimizers = [
        ("sgd", 0.1, 0.0),
        ("sgd", 0.01, 0.9),
        ("adam", 0.001, 0.0),
        ("sam", 0.1, 0.0),
        ("muon", 0.01, 0.95),
    ]
    cells = [
        {
            "optimizer.name": name,
            "optimizer.learning_rate": scale * rate,
            "optimizer.momentum": momentum,
            "optimizer.projection": where,
        }
        for name, rate, momentum in optimizers
        for where in ("update", "gradient")
        if (name, where) != ("sam", "gradient")
    ]
    return grid.product(cells, SEEDS)
