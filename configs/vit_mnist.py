"""A small vision transformer on MNIST-5k: does the split hold where layers attend?

The method of Song, Ahn and Yun (arXiv 2405.16002) on a network that they did not look
at: 16 patches of 7x7 pixels, 2 blocks of width 32 with 4 heads and GELU, mean over the
patches (arXiv 2010.11929 and 2205.01580); 27,914 parameters. Cross-entropy, SGD with
rate 0.1 after a warm-up of 100 steps, batch 50, k = 10; Hessian of 500 images,
refreshed every 50 steps; fork at step 1,000, end at 2,000.

Expected: as for the networks of that paper, Dom-SGD stands still and Bulk-SGD falls as
fast as SGD.

  python -m bulk_sgd.main --config=configs/vit_mnist.py --workdir=runs/vit_mnist
  python -m bulk_sgd.report --workdir=runs/vit_mnist

`--config=configs/vit_mnist.py:quick` takes 60 steps of 500 images, two minutes on two
CPU cores, mostly compilation: from a loss of 2.271 at its fork to 2.235 (SGD), 2.271
(Dom-SGD) and 2.235 (Bulk-SGD).

The "tiny" size of the literature, for larger images, is `--config.model.width=192
--config.model.num_layers=12 --config.model.num_heads=3 --config.model.patch=16`.
"""

from configs.mnist_mlp import get_config as mnist_mlp


def get_config(variant: str = ""):
    """The config; `variant` is "" or "quick"."""
    config = mnist_mlp(variant)
    config.name = "MNIST-5k, vision transformer"
    config.model.name = "vit"
    config.model.patch = 7
    config.model.width = 32
    config.model.num_layers = 2
    config.model.num_heads = 4
    config.model.activation = "gelu"
    config.loss.name = "cross_entropy"
    if variant:
        config.data.num_train, config.data.num_test = 500, 200
        config.model.scan_layers = True  # two blocks compile as one
    config.optimizer.learning_rate = 0.1
    config.optimizer.warmup_steps = 10 if variant else 100
    config.num_steps = 60 if variant else 2_000
    config.switch.step = 30 if variant else 1_000
    config.eval_every = 10 if variant else 50
    config.subspace.subset_size = 100 if variant else 500
    config.subspace.refresh_every = 10 if variant else 50
    config.arms = ("sgd", "dom_sgd", "bulk_sgd")
    return config
