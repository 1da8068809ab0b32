"""`configs/mnist_mlp.py` with a small CNN, ReLU and cross-entropy.

Two 3x3 convolutions with 16 channels and 2x2 max pooling, one dense layer: 10,330
parameters; curvature of 500 images, refreshed every 50 steps. For piecewise linear
networks the Hessian is that of the pieces: the trace of its functional part vanishes,
and the eigenvectors jump where activations switch.

  python -m bulk_sgd.main --config=configs/mnist_cnn.py --workdir=runs/mnist_cnn

`--config=configs/mnist_cnn.py:quick` takes 100 steps of 500 images, to see it run.
"""

from configs.mnist_mlp import get_config as mnist_mlp


def get_config(variant: str = ""):
    """The config; `variant` is "" or "quick"."""
    config = mnist_mlp(variant)
    config.name = "MNIST-5k, CNN, cross-entropy"
    config.model.name = "cnn"
    config.model.channels = (16, 16)
    config.model.activation = "relu"
    config.loss.name = "cross_entropy"
    config.subspace.subset_size = 500
    config.subspace.refresh_every = 50
    if variant:
        config.data.num_train, config.data.num_test = 500, 200
        config.num_steps, config.switch.step, config.eval_every = 100, 50, 25
        config.subspace.subset_size = 100
        config.subspace.refresh_every = 25
    return config
