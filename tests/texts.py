"""Text data as a config names them, and small runs on them; shared by the tests."""

from ml_collections import ConfigDict

from bulk_sgd.lab.data import sources


def load(name, test_path="", **changes):
    config = {"name": name, "test_path": test_path, "normalization": "none"}
    config |= {"num_train": 0, "num_test": 0, "length": 0, "vocab_size": 0}
    return sources.load(ConfigDict(config | changes))


def small(config, **data_fields):
    config.data.update(data_fields)
    config.model.width, config.model.num_heads = 8, 2
    config.num_steps, config.switch.step, config.eval_every = 4, 2, 2
    config.arms = ("sgd", "bulk_sgd")
    config.tensorboard = config.progress = False
    return config
