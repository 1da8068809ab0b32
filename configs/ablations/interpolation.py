r"""What lies between SGD, Dom-SGD and Bulk-SGD?

Asks how speed and stability change along three families of scales (a, b): the bulk
path (α, 1), the dom path (1, α) and the cross path (α, 1 − α). Expected: along the
bulk path the sharpness falls as α leaves 0, and with it what the loss has gained.

About 2 minutes with preset "cpu" on two busy CPU cores.

  python -m bulk_sgd.sweep --config=configs/ablations/interpolation.py:cpu \
      --workdir=runs/interpolation
  python -m bulk_sgd.report --workdir=runs/interpolation
"""

from bulk_sgd.lab.sweep import grid
from configs.ablations.base import SEEDS, base_config, is_small


def get_config(preset: str = "cpu"):
    """The base config of the axis."""
    is_small(preset)
    config = base_config(preset, "Interpolation families")
    families = ("bulk_path", "dom_path", "cross_path")
    between = [f"{name}({alpha})" for name in families for alpha in (0.25, 0.5, 0.75)]
    config.arms = ("sgd", "dom_sgd", "bulk_sgd", *between)
    return config


def get_sweep(preset: str = "cpu"):
    """The cells of the axis."""
    is_small(preset)
    return grid.chain(SEEDS)
