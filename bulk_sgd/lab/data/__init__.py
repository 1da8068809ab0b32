"""Data sets, images or text, and the order of their mini-batches.

Curvature on the full data needs all of it at hand: on the devices. A process reads what
its own devices hold. TFDS is read without TensorFlow, and nothing is ever downloaded.
"""

import contextlib
import functools
import pathlib
import re

import numpy as np

from bulk_sgd.lab.data import npz, text
from bulk_sgd.lab.data.dataset import Dataset, count, wrong
from bulk_sgd.lab.data.rows import LazyRows

_EMBEDDED = pathlib.Path(__file__).parent / "embedded" / "mnist_5k.npz"


def load(config) -> Dataset:
    """The data set that a configuration names, in memory.

    Args:
      config: as for `find`.

    Raises:
      ValueError: as `find`, or data are not finite or out of the range of the
        normalization.

    >>> from ml_collections import ConfigDict
    >>> config = ConfigDict({"name": "mnist5k", "num_train": 100, "num_test": 50})
    >>> config.normalization = "unit"
    >>> dataset = load(config)
    >>> dataset.train_inputs.shape, dataset.train_targets[:5].tolist()
    ((100, 28, 28, 1), [5, 0, 4, 1, 9])
    """
    found = find(config)
    return found._replace(
        **{name: x[:] for name, x in found._asdict().items() if isinstance(x, LazyRows)}
    )


def find(config) -> Dataset:
    """The data set that a configuration names, read where it is indexed.

    What is known about all examples, such as the number of classes and the statistics
    of a normalization, is read here. Inputs and targets are numpy arrays or, where the
    format lets single examples be read, `rows.LazyRows`; labelled sentences are read
    whole, for the vocabulary is that of all of them.

    Args:
      config: has
        `name`: 'mnist5k', the first 5,000 train and 1,000 test images of MNIST, in
          the original order, from the package; 'tfds:NAME', a prepared TFDS data set
          with the features 'image' or 'sentence', and 'label'; 'tsv:PATH', labelled
          sentences, see `text.read_tsv`; 'sonnets', from the package, 'text:PATH',
          'tokens:PATH' or 'random', running text, see `text.running`; or the path of a
          .npz file with x_train, y_train, x_test, y_test, images uint8 or float
          (N, height, width) or (N, height, width, depth), or features (N, dimension),
          labels integer (N,).
        `num_train`, `num_test`: the first so many are taken; 0 takes all.
        `normalization`: 'unit', uint8 over 255 and floats as they are, which must be
          from 0 to 1; 'standard', zero mean and unit variance over the selected train
          images, per channel, or per feature; 'none', raw values, and for text.
        `test_path`, `length`, `vocab_size`: for text only, see `bulk_sgd.text`.
        `data_dir`, `train_split`, `test_split`: for TFDS only; '' is its default
          directory. Its order is shuffled: 'train[:5000]' are not the first 5,000.

    Raises:
      ValueError: a wrong field, or data missing, unreadable, unprepared, misshapen or
        too few. Reading inputs raises it where they are not finite or out of the range
        of the normalization.

    >>> from ml_collections import ConfigDict
    >>> config = ConfigDict({"name": "mnist5k", "num_train": 100, "num_test": 50})
    >>> config.normalization = "unit"
    >>> inputs = find(config).train_inputs
    >>> inputs.shape, inputs[7:9].shape
    ((100, 28, 28, 1), (2, 28, 28, 1))
    """
    if config.normalization not in ("unit", "standard", "none"):
        raise wrong(config, "normalization", "must be 'unit', 'standard' or 'none'")
    kind, colon, _ = config.name.partition(":")
    if config.name in ("sonnets", "random") or kind + colon in ("text:", "tokens:"):
        return text.running(config)
    read = {"tfds:": _read_tfds, "tsv:": text.read_tsv}.get(kind + colon, _read_npz)
    parts = read(config, "train"), read(config, "test")
    if isinstance(parts[0][0], list):
        return text.labelled(config, *parts)
    (train, train_targets, train_classes), (test, test_targets, test_classes) = parts
    shapes = train.shape[1:], test.shape[1:]
    if shapes[0] != shapes[1]:
        raise wrong(config, "name", f"its train and test images differ: {shapes}")
    if config.normalization == "standard":
        mean, std = train.moments()
        std[std == 0] = 1
        standard = lambda images: ((images - mean) / std).astype(np.float32)
        train, test = (part.map(standard, np.float32) for part in (train, test))
    num_classes = max(train_classes, test_classes)
    return Dataset(config.name, train, train_targets, test, test_targets, num_classes)


def batch_indices(
    seed: int, start_step: int, num_steps: int, num_examples: int, batch_size: int
) -> np.ndarray:
    """Indices (num_steps, batch_size) int32 of mini-batches, from seed and step alone.

    Every epoch is a permutation of its own, cut into num_examples // batch_size
    batches; the remainder is dropped. The rows do not depend on how the steps are
    cut into calls, so that a resumed run sees the batches it would have seen.

    Raises:
      ValueError: seed or start_step negative; batch_size not in [1, num_examples].

    >>> rows = batch_indices(0, 0, 5, num_examples=10, batch_size=2)
    >>> sorted(rows.ravel().tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    >>> bool((batch_indices(0, 3, 2, 10, 2) == rows[3:]).all())
    True
    """
    if seed < 0 or start_step < 0:
        raise ValueError(f"seed {seed} or start_step {start_step} is negative.")
    if not 1 <= batch_size <= num_examples:
        raise ValueError(f"batch_size is {batch_size}, but 1 to {num_examples} can be.")
    rows = np.empty((num_steps, batch_size), np.int32)
    for row, step in enumerate(range(start_step, start_step + num_steps)):
        epoch, batch = divmod(step, num_examples // batch_size)
        order = _epoch_order(seed, epoch, num_examples)
        rows[row] = order[batch * batch_size : (batch + 1) * batch_size]
    return rows


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    # The epoch as a second word of entropy would clash with seeds above 2³². And
    # numpy promises the bits of Philox across versions, but not its permutations.
    sequence = np.random.SeedSequence(seed, spawn_key=(epoch,))
    bits = np.random.Philox(sequence).random_raw(num_examples)
    return np.argsort(bits, kind="stable")


def _scaled(config, part: str, images: LazyRows) -> LazyRows:
    """Images as inputs (N, height, width, depth) or (N, dimension), float32."""
    problem = None
    if images.ndim not in (2, 3, 4):
        problem = f"images have shape {images.shape}, not (N, height, width[, depth])"
        problem += " or (N, dimension)"
    elif 0 in images.shape:
        problem = f"images have shape {images.shape}, which holds none"
    elif images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        problem = f"images have dtype {images.dtype}, neither uint8 nor float"
    if problem:
        raise wrong(config, "name", f"its {part} {problem}")
    shape = images.shape if images.ndim != 3 else (*images.shape, 1)
    is_scaled = images.dtype == np.uint8 and config.normalization != "none"

    def read(numbers):
        inputs = images.read(numbers).reshape(len(numbers), *shape[1:])
        with np.errstate(over="ignore"):  # infinite, which is refused below
            inputs = np.divide(inputs, 255 if is_scaled else 1, dtype=np.float32)
        low, high = inputs.min(), inputs.max()
        if not np.isfinite(low + high):
            raise wrong(config, "name", f"its {part} images are not all finite numbers")
        if config.normalization == "unit" and (low < 0 or high > 1):
            problem = f"the {part} images are floats from {low:g} to {high:g}, not 0 "
            problem += "to 1: scale them, or take 'standard' or 'none'"
            raise wrong(config, "normalization", problem)
        return inputs

    return LazyRows((count(config, part, len(images)), *shape[1:]), np.float32, read)


def _read_npz(config, part: str):
    path = _EMBEDDED if config.name == "mnist5k" else config.name
    images, labels = npz.open_arrays(config, path, [f"{x}_{part}" for x in "xy"])
    inputs = _scaled(
        config, part, LazyRows(images.shape, images.dtype, images.__getitem__)
    )
    problem = None
    if labels.shape != images.shape[:1]:
        problem = f"labels have shape {labels.shape} for {len(images)} images"
    elif not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        problem = f"labels ({labels.dtype}) are not all non-negative integers"
    if problem:
        raise wrong(config, "name", f"its {part} {problem}")
    return inputs, labels[: len(inputs)].astype(np.int32), int(labels.max()) + 1


def _read_tfds(config, part: str):
    source = _open_tfds(config, part)
    features = source.dataset_info.features
    named = "sentence" if "sentence" in features else "image"
    if not {named, "label"} <= features.keys():
        problem = f"it has {sorted(features)}, not image or sentence and label"
        raise wrong(config, "name", problem)
    number = count(config, part, len(source))
    num_classes = getattr(features["label"], "num_classes", None)
    if named == "sentence":
        records = source.__getitems__(range(number))
        labels = _labels(config, part, records)
        sentences = [record["sentence"].decode() for record in records]
        return sentences, labels, num_classes or int(labels.max()) + 1
    undecoded = _open_tfds(config, part, named)
    labels = LazyRows(
        (number,),
        np.int32,
        lambda numbers: _labels(config, part, _records(undecoded, numbers)),
    )
    first = source[0]["image"]

    def read(numbers):
        images = [record["image"] for record in _records(source, numbers)]
        for image in images:
            if image.shape != first.shape:
                problem = f"its images have shapes {first.shape}, {image.shape}"
                raise wrong(config, "name", problem)
        return np.stack(images)

    images = LazyRows((len(source), *first.shape), first.dtype, read)
    inputs = _scaled(config, part, images)
    return inputs, labels, num_classes or int(labels[:].max()) + 1


def _records(source, numbers):
    return source.__getitems__(numbers.tolist())


def _labels(config, part: str, records) -> np.ndarray:
    labels = np.array([record["label"] for record in records], np.int32)
    if labels.min() < 0:
        problem = f"the labels of {config.name} there are not public"
        raise wrong(config, f"{part}_split", problem)
    return labels


def _open_tfds(config, part: str, undecoded: str | None = None):
    """The source of a part, one of whose features may be left as it is stored."""
    # Here, because importing takes a second and most runs do without.
    import tensorflow_datasets as tfds

    name = config.name.removeprefix("tfds:")
    # Not huggingface:NAME, which would ask the network.
    if not re.fullmatch(r"\w+(/[\w.+-]+)?(:[\d.*]+)?", name):
        raise wrong(config, "name", "must be 'tfds:NAME[/CONFIG][:VERSION]'")
    where, builder = config.data_dir or None, None
    with contextlib.suppress(AssertionError, ValueError):
        builder = tfds.builder(name, data_dir=where)
    run = f"run tfds.builder({name!r}, data_dir={where!r}).download_and_prepare"
    run += "(file_format='array_record')"
    if builder is None or not builder.is_prepared():
        problem = (
            f"is not prepared in config.data.data_dir {config.data_dir!r}: {run} once"
        )
        raise wrong(config, "name", f"{problem} (most data sets need TensorFlow)")
    if tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        held = f"is prepared as {builder.info.file_format.value}, not array_record"
        raise wrong(config, "name", f"{held}: {run} with another data_dir")
    try:
        decoders = {undecoded: tfds.decode.SkipDecoding()} if undecoded else None
        split = getattr(config, f"{part}_split")
        return builder.as_data_source(split, decoders=decoders)
    except (KeyError, ValueError) as error:
        sizes = {key: split.num_examples for key, split in builder.info.splits.items()}
        raise wrong(config, f"{part}_split", f"{name} has {sizes}") from error
