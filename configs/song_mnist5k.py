"""The MNIST-5k protocol of Song, Ahn and Yun, *Does SGD really happen in tiny
subspaces?* (arXiv 2405.16002): full-data Hessian at every step, 20,000 steps.

MLP 784-200-200-10 with tanh (199,210 parameters), standardised inputs, squared error
summed over the classes, rate 0.01, batch 50, k = 10. SGD until the average alignment
(0.9 old + 0.1 new) of the full gradient exceeds 0.95, then SGD, Dom-SGD and Bulk-SGD
from there.

Expected: Dom-SGD stops improving at the fork, Bulk-SGD goes on as SGD does. With
`--config.switch.measure_every=10 --config.subspace.refresh_every=50` (seed 0, jax
0.10.2, CPU) the rule forks at step 1,071, at a training loss of 0.234. At step 3,000
it is 0.127 for SGD, 0.233 for Dom-SGD and 0.127 for Bulk-SGD, and λ_1 is 109, 87 and
125. The cheapest subspace goes the whole way in minutes: with a fork at that step and
`streaming(every=4, gain=0.2)` on the mini-batch, the losses at step 20,000 are 0.0287,
0.2338 and 0.0272.

A step of an arm takes some 20 matvecs over 5,000 images. At the 0.02 seconds that one
takes on two idle CPU cores (`scripts/benchmark.py`), the 40,000 steps of prefix and
arms with the latest switch are some 4½ hours; `configs/mnist_mlp.py` shows the same in
minutes.

  python -m bulk_sgd.main --config=configs/song_mnist5k.py --workdir=runs/song

`--config=configs/song_mnist5k.py:cheap` goes the whole way in minutes: the subspace
comes from `streaming(factors=8, every=16, gain=0.4)` on the mini-batch, and the fork is
at step 1,000.

`--config=configs/song_mnist5k.py:quick` takes 40 steps of 500 images, to see it run.
"""

from bulk_sgd.lab.config import default
from configs.pays.base import CHEAPEST


def get_config(variant: str = ""):
    """The config; `variant` is "", "quick" or "cheap"."""
    if variant not in ("", "quick", "cheap"):
        allowed = "it must be empty or 'quick' or 'cheap'."
        raise ValueError(f"variant is {variant!r}; {allowed}")
    config = default()
    config.name = "MNIST-5k, protocol of Song et al."
    config.data.normalization = "standard"
    config.model.name = "mlp"
    config.model.hidden = (200, 200)
    config.model.activation = "tanh"
    config.model.init = "torch"
    config.loss.name = "mse"
    config.loss.reduction = "sum"
    config.batch_size = 50
    config.num_steps = 20_000
    config.optimizer.learning_rate = 0.01
    config.subspace.rank = 10
    config.subspace.data = "full"
    config.subspace.refresh_every = 1
    config.switch.step = 10_000  # should the average never get there
    config.switch.alignment = 0.95
    config.switch.gradient = "full"
    config.switch.decay = 0.9
    config.switch.measure_every = 1
    config.arms = ("sgd", "dom_sgd", "bulk_sgd")
    if variant == "quick":
        config.data.num_train = 500
        config.num_steps, config.switch.step, config.eval_every = 40, 20, 10
    if variant == "cheap":
        config.subspace.update(CHEAPEST)
        config.switch.step, config.switch.alignment = 1_000, 0.0
        config.switch.gradient = "update"
        config.eval_every = 500
    return config
