r"""Does it pay? Every (a, b) at its own best learning rate, in steps and in seconds.

MNIST-5k, tanh network 784-100-100-10, cross-entropy, batch 50, 1,500 steps with a
cosine decay of the rate; `streaming()` in factors on the mini-batch, every four steps;
fork at step 100. There is a sweep for each inner optimizer: "sgd", "momentum", "adamw"
and "muon".

  python -m bulk_sgd.sweep --config=configs/pays/mnist.py:momentum \
      --workdir=runs/pays/momentum
  python -m bulk_sgd.report --workdir=runs/pays/momentum

The arm "sgd", (a, b) = (1, 1), is the plain inner optimizer. The report compares the
other arms with it. AdamW and Muon have a second setting, with the subspace in
their own metric.
"""

from bulk_sgd.lab.config import default
from bulk_sgd.lab.sweep import grid
from bulk_sgd.lab.sweep.tuning import Tuning

# The fields of an inner optimizer, and the learning rates to begin with.
_OPTIMIZERS = {
    "sgd": ({}, (0.1, 0.2, 0.4, 0.8)),
    "momentum": ({"momentum": 0.9}, (0.01, 0.02, 0.04, 0.08, 0.16)),
    "adamw": ({"name": "adamw"}, (0.0005, 0.001, 0.002, 0.004)),
    "muon": ({"name": "muon", "momentum": 0.95}, (0.005, 0.01, 0.02, 0.04)),
}

tune = Tuning("optimizer.learning_rate", reference="sgd")


def get_config(optimizer: str = "sgd"):
    """The base config of an inner optimizer."""
    fields, _ = _find(optimizer)
    config = default()
    config.name = f"Does it pay around {optimizer}?"
    config.model.hidden = (100, 100)
    config.loss.name = "cross_entropy"
    config.num_steps, config.switch.step, config.eval_every = 1_500, 100, 50
    config.optimizer.update(fields)
    config.optimizer.schedule, config.optimizer.decay_steps = "cosine", 1_500
    config.subspace.solver, config.subspace.data = "streaming", "batch"
    config.subspace.every, config.subspace.gain, config.subspace.factors = 4, 0.2, 4
    config.arms = (
        *("sgd", "bulk_sgd", "scales(0.5, 1)", "scales(0.5, 2)", "scales(0.25, 2)"),
        "scales(0.25, 4)",
    )
    config.checkpoint.every = 0  # a cell takes a minute
    config.progress = config.tensorboard = False
    return config


def get_sweep(optimizer: str = "sgd"):
    """Rates and seeds, in the Euclidean metric and that of the optimizer."""
    _, rates = _find(optimizer)
    metrics = [{}]
    if optimizer in ("adamw", "muon"):
        metrics = grid.values("subspace.preconditioned", (False, True))
    rates = grid.values("optimizer.learning_rate", rates)
    return grid.product(metrics, rates, grid.values("seed", range(3)))


def _find(optimizer):
    if optimizer not in _OPTIMIZERS:
        names = ", ".join(_OPTIMIZERS)
        raise ValueError(f"optimizer is {optimizer!r}; it must be one of {names}.")
    return _OPTIMIZERS[optimizer]
