"""Images and features as the inputs of a network."""

import numpy as np

from bulk_sgd.lab.data.dataset import count, wrong
from bulk_sgd.lab.data.rows import LazyRows


def as_inputs(config, part: str, images: LazyRows) -> LazyRows:
    """The selected images (N, height, width, depth) or (N, dimension), float32.

    Reading them checks that they are finite and in the range of the normalization.
    """
    problem = None
    if images.ndim not in (2, 3, 4):
        problem = f"shape {images.shape}, not (N, height, width[, depth])"
        problem += " or (N, dimension)"
    elif 0 in images.shape:
        problem = f"shape {images.shape}, which holds none"
    elif images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        problem = f"dtype {images.dtype}, neither uint8 nor float"
    if problem:
        raise wrong(config, "name", f"its {part} inputs have {problem}")
    shape = images.shape if images.ndim != 3 else (*images.shape, 1)
    is_scaled = images.dtype == np.uint8 and config.normalization != "none"

    def read(numbers):
        inputs = images.read(numbers).reshape(len(numbers), *shape[1:])
        with np.errstate(over="ignore"):  # infinite, and refused below
            inputs = np.divide(inputs, 255 if is_scaled else 1, dtype=np.float32)
        low, high = inputs.min(), inputs.max()
        if not np.isfinite(low + high):
            raise wrong(config, "name", f"its {part} inputs are not all finite numbers")
        if config.normalization == "unit" and (low < 0 or high > 1):
            problem = f"the {part} inputs are floats from {low:g} to {high:g}, not 0 "
            problem += "to 1: scale them, or take 'standard' or 'none'"
            raise wrong(config, "normalization", problem)
        return inputs

    return LazyRows((count(config, part, len(images)), *shape[1:]), np.float32, read)


def standardized(train: LazyRows, test: LazyRows) -> list[LazyRows]:
    """Both standardized per channel or feature of `train`; a constant one becomes 0."""
    mean, std = train.moments()
    std[std == 0] = 1
    standard = lambda images: ((images - mean) / std).astype(np.float32)
    return [part.map(standard, np.float32) for part in (train, test)]
