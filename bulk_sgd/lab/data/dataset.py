"""What a data set is, and errors that name a field of `config.data`."""

from typing import NamedTuple

import numpy as np

from bulk_sgd.lab.data.rows import LazyRows


class Dataset(NamedTuple):
    """Inputs with int32 labels, (N,) or one per position (N, length).

    Inputs are float32 images (N, height, width, depth) or features (N, dimension), or
    int32 tokens (N, length) below vocab_size, which is otherwise 0. num_classes comes
    from TFDS or else from the largest label of all the data, selected or not.
    """

    name: str
    train_inputs: np.ndarray | LazyRows
    train_targets: np.ndarray | LazyRows
    test_inputs: np.ndarray | LazyRows
    test_targets: np.ndarray | LazyRows
    num_classes: int
    vocab_size: int = 0


def wrong(config, field: str, problem: str) -> ValueError:
    """The error that names a field of `config.data`, its value and the problem."""
    return ValueError(
        f"config.data.{field} is {getattr(config, field)!r}, but {problem}."
    )


def count(config, part: str, available: int) -> int:
    """How many examples of a part, 'train' or 'test', `config.data` selects."""
    number = getattr(config, f"num_{part}")
    if not 0 <= number <= available:
        raise wrong(config, f"num_{part}", f"there are {available} (0 takes all)")
    return number or available
