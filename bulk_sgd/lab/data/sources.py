"""Data sets by the name that a config gives them."""

from bulk_sgd.lab import plugins
from bulk_sgd.lab.data import images, npz, own, text, tfds
from bulk_sgd.lab.data.dataset import Dataset, wrong
from bulk_sgd.lab.data.rows import LazyRows


def load(config) -> Dataset:
    """The data set that `find` returns, in memory."""
    return Dataset(*(x[:] if isinstance(x, LazyRows) else x for x in find(config)))


def find(config) -> Dataset:
    """The data set that a config names, read where it is indexed.

    The number of classes and the statistics of a normalization, which depend on all
    examples, are computed here. Inputs and targets are `rows.LazyRows` where the format
    allows it, and else numpy arrays.

    Args:
      config: `config.data`; `bulk_sgd.lab.config` lists its fields. An .npz file has
        images x_train and x_test, uint8 or float (N, height, width[, depth]), or
        features (N, dimension), and labels y_train and y_test: integers (N,), or floats
        (N,) or (N, dimension) for a loss of the user's own. A TFDS data
        set has 'label', and 'image' or 'sentence'; its order is shuffled, so
        'train[:5000]' are not the first 5,000.

    Raises:
      ValueError: a wrong field, or data missing, unreadable, unprepared, misshapen or
        too few. Reading inputs raises it where they are not finite or out of the range
        of the normalization.
    """
    if config.normalization not in ("unit", "standard", "none"):
        raise wrong(config, "normalization", "must be 'unit', 'standard' or 'none'")
    kind, colon, _ = config.name.partition(":")
    if config.name in ("sonnets", "random") or kind + colon in ("text:", "tokens:"):
        return text.running(config)
    read = {"tfds:": tfds.read, "tsv:": text.read_tsv}.get(kind + colon, npz.read)
    if plugins.is_path(config.name):
        read = own.call(config)
        if isinstance(read, Dataset):
            return read
    parts = read(config, "train"), read(config, "test")
    if isinstance(parts[0][0], list):
        return text.labelled(config, *parts)
    (train, train_targets, train_classes), (test, test_targets, test_classes) = parts
    shapes = train.shape[1:], test.shape[1:]
    if shapes[0] != shapes[1]:
        raise wrong(config, "name", f"its train and test inputs differ: {shapes}")
    kinds = [f"{x.dtype} {x.shape[1:]}" for x in (train_targets, test_targets)]
    if kinds[0] != kinds[1]:
        raise wrong(config, "name", f"its train and test labels differ: {kinds}")
    if config.normalization == "standard":
        train, test = images.standardized(train, test)
    num_classes = max(train_classes, test_classes)
    return Dataset(config.name, train, train_targets, test, test_targets, num_classes)
