r"""How is the curvature energy spread over the dominant subspace and the bulk?

Asks for the trace, Frobenius and block shares of H, G and F in the dominant subspace
of H along training from the start, under tanh with squared error and cross-entropy
and under ReLU. Expected: the energies of H and G are concentrated in ten directions,
that of F is not; for ReLU tr F is zero.

About 10 minutes with preset "cpu" on two busy CPU cores.

  python -m bulk_sgd.sweep --config=configs/ablations/curvature.py:cpu \
      --workdir=runs/curvature
  python -m bulk_sgd.report --workdir=runs/curvature
"""

from bulk_sgd.lab.sweep import grid
from configs.ablations.base import MAIN_ARMS, SEEDS, base_config, is_small


def get_config(preset: str = "cpu"):
    """The base config of the axis."""
    config = base_config(preset, "Curvature energy")
    config.arms = MAIN_ARMS
    config.switch.step = 0
    config.measures.every = 100 if is_small(preset) else 1_000
    return config


def get_sweep(preset: str = "cpu"):
    """The cells of the axis."""
    is_small(preset)
    networks = [
        {"model.activation": "tanh", "loss.name": "mse"},
        {"model.activation": "tanh", "loss.name": "cross_entropy"},
        {"model.activation": "relu", "loss.name": "mse"},
    ]
    return grid.product(networks, SEEDS)
