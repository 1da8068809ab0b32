"""Prepared data sets of TFDS, read without TensorFlow."""

import contextlib
import re

import numpy as np

from bulk_sgd.lab.data import images
from bulk_sgd.lab.data.dataset import count, wrong
from bulk_sgd.lab.data.rows import LazyRows


def read(config, part: str):
    """Inputs, or a list of sentences, of a part, their labels and number of classes."""
    source = _open(config, part)
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
    undecoded = _open(config, part, named)  # labels need no decoded images
    read_labels = lambda numbers: _labels(config, part, _records(undecoded, numbers))
    labels = LazyRows((number,), np.int32, read_labels)
    first = source[0]["image"]

    def read_images(numbers):
        found = [record["image"] for record in _records(source, numbers)]
        for image in found:
            if image.shape != first.shape:
                problem = f"its images have shapes {first.shape}, {image.shape}"
                raise wrong(config, "name", problem)
        return np.stack(found)

    rows = LazyRows((len(source), *first.shape), first.dtype, read_images)
    inputs = images.as_inputs(config, part, rows)
    return inputs, labels, num_classes or int(labels[:].max()) + 1


def _records(source, numbers):
    return source.__getitems__(numbers.tolist())


def _labels(config, part: str, records) -> np.ndarray:
    labels = np.array([record["label"] for record in records], np.int32)
    if labels.min() < 0:
        problem = f"the labels of {config.name} there are not public"
        raise wrong(config, f"{part}_split", problem)
    return labels


def _open(config, part: str, undecoded: str | None = None):
    """The source of a part; the feature `undecoded` comes as it is stored."""
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
