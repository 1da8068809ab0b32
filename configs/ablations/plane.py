r"""Where in the plane of scales (a, b) is training fast, and where is it stable?

Asks for the loss after the fork and the largest stable learning rate over a grid of
the factors a of the dominant and b of the bulk part. Expected: speed grows with b
until training turns unstable; a moderates the sharpness and hardly adds speed.

About 4 minutes with preset "cpu" on two busy CPU cores.

  python -m bulk_sgd.sweep --config=configs/ablations/plane.py:cpu \
      --workdir=runs/plane
  python -m bulk_sgd.report --workdir=runs/plane
"""

from bulk_sgd.lab.sweep import grid
from configs.ablations.base import SEEDS, base_config, is_small


def get_config(preset: str = "cpu"):
    """The base config of the axis."""
    config = base_config(preset, "Plane of scales (a, b)")
    grid_points = [(a, b) for a in (0, 0.25, 0.5, 1, 2) for b in (0, 0.5, 1, 2, 4)]
    names = {(1, 1): "sgd", (1, 0): "dom_sgd", (0, 1): "bulk_sgd"}
    config.arms = tuple(
        names.get(point, f"scales{point}") for point in grid_points if any(point)
    )
    config.num_steps = 1_000 if is_small(preset) else 15_000
    return config


def get_sweep(preset: str = "cpu"):
    """The cells of the axis."""
    is_small(preset)
    return grid.chain(SEEDS)
