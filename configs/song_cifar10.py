"""The CIFAR10-5k protocol of Song, Ahn and Yun, *Does SGD really happen in tiny
subspaces?* (arXiv 2405.16002): full-data Hessian at every step, 20,000 steps.

CNN of width 32 with ReLU, squared error summed over the classes, rate 0.001, batch 50,
k = 10; the first 5,000 images of CIFAR-10. SGD until the average alignment
(0.9 old + 0.1 new) of the full gradient exceeds 0.95, then SGD, Dom-SGD and Bulk-SGD
from there.

The "3-layer CNN" of the paper is read as two convolutions and a dense layer. The other
reading, with three convolutions, and the paper's other networks:

  --config.model.channels="(32, 32, 32)"
  --config.model.name=vgg11
  --config.model.name=resnet8 --config.model.width=16

The last two have group normalisation, since with that of batches an example's loss
depends on the others'.

Expected: Dom-SGD stops improving at the fork, Bulk-SGD goes on as SGD does.

The data are an .npz with x_train, y_train, x_test, y_test:

  python -m bulk_sgd.main --config=configs/song_cifar10.py --workdir=runs/song_cifar10 \
    --config.data.name=cifar10_5k.npz

or, in another order, what `scripts/prepare_data.py` prepares, `tfds:cifar10`.

`--config=configs/song_cifar10.py:cheap` goes the whole way in 95 minutes on one busy
CPU core: the subspace comes from `streaming(factors=8, every=16, gain=0.4)` on the
mini-batch, and the fork is at step 2,000.

`--config=configs/song_cifar10.py:quick` takes 16 steps of 20 images with a solve at
every fourth, and VGG-11 and ResNet-8 of width 8, to see it run.
"""

from configs.song_mnist5k import get_config as song_mnist5k


def get_config(variant: str = ""):
    """The config; `variant` is "", "quick" or "cheap"."""
    config = song_mnist5k(variant)
    config.name = "CIFAR10-5k, protocol of Song et al."
    config.data.name = "cifar10_5k.npz"
    config.data.num_train, config.data.num_test = 5_000, 1_000
    config.model.name = "cnn"
    config.model.channels = (32, 32)
    config.model.activation = "relu"
    config.optimizer.learning_rate = 0.001
    config.microbatch_size = 500
    if variant == "quick":
        config.data.num_train = config.data.num_test = 20
        config.num_steps, config.switch.step, config.eval_every = 16, 8, 8
        config.model.width = 8  # vgg11, resnet8
        config.batch_size, config.microbatch_size = 10, 0
        config.subspace.refresh_every = 4
    if variant == "cheap":
        config.switch.step = 2_000
    return config
