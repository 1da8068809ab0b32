r"""Does the picture change with the shape of the network?

Asks how the methods compare over widths at a depth of two hidden layers, and over
depths at one width. Expected: the number of dominant directions is set by the
classes, not by the parameters, so that the methods keep their order.

About 9 minutes with preset "cpu" on two busy CPU cores.

  python -m bulk_sgd.sweep --config=configs/ablations/width_depth.py:cpu \
      --workdir=runs/width_depth
  python -m bulk_sgd.report --workdir=runs/width_depth
"""

from bulk_sgd.lab.sweep import grid
from configs.ablations.base import SEEDS, base_config, is_small


def get_config(preset: str = "cpu"):
    """The base config of the axis."""
    return base_config(preset, "Width and depth")


def get_sweep(preset: str = "cpu"):
    """The cells of the axis."""
    width = 32 if is_small(preset) else 200
    shapes = [(width // 4,) * 2, (width,), (width,) * 2, (width,) * 4, (width * 4,) * 2]
    return grid.product(grid.values("model.hidden", shapes), SEEDS)
