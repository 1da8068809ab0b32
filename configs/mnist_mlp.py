from bulk_sgd.config import default


def get_config():
    config = default()
    config.name = "MNIST-5k, tanh MLP, MSE"
    return config
