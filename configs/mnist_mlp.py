"""SGD, Dom-SGD, Bulk-SGD and points between them on MNIST-5k, in minutes on a CPU.

This is `configs/song_mnist5k.py`, the protocol of Song, Ahn and Yun (arXiv 2405.16002),
made small:

- the Hessian is that of a fixed subset of 1,000 images and is refreshed every 20 steps,
  not that of all 5,000 at every step;
- 4,000 steps at rate 0.05 instead of 20,000 at 0.01, of half the squared error and of
  pixels between 0 and 1;
- the arms fork at step 2,000, not when the average alignment exceeds 0.95;
- two more arms: half of the dominant part, and that with the bulk part doubled, as in
  Zakarin and Singh (arXiv 2505.11972).

Expected: after the fork Dom-SGD stands still, Bulk-SGD falls as fast as SGD, and
doubling the bulk part falls faster. Nothing checks λ_1 in Bulk-SGD, which grows past
the stability threshold 2/η.

  python -m bulk_sgd.main --config=configs/mnist_mlp.py --workdir=runs/mnist_mlp
  python -m bulk_sgd.report --workdir=runs/mnist_mlp

`--config=configs/mnist_mlp.py:quick` takes 400 steps, a few seconds an arm.
"""

from configs.song_mnist5k import get_config as song_mnist5k


def get_config(variant: str = ""):
    """The config; `variant` is "" or "quick"."""
    if variant not in ("", "quick"):
        raise ValueError(f"variant is {variant!r}; it must be empty or 'quick'.")
    config = song_mnist5k()
    config.name = "MNIST-5k, tanh MLP"
    config.data.normalization = "unit"
    config.loss.reduction = "half_sum"
    config.optimizer.learning_rate = 0.05
    config.num_steps = 400 if variant else 4_000
    config.switch.step = 200 if variant else 2_000
    config.switch.alignment = 0.0
    config.switch.gradient = "update"
    config.subspace.data = "subset"
    config.subspace.subset_size = 1_000
    config.subspace.refresh_every = 20
    config.eval_every = 40 if variant else 50
    config.arms = ("sgd", "dom_sgd", "bulk_sgd", "bulk_path(0.5)", "scales(0.5, 2)")
    return config
