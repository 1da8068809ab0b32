#!/usr/bin/env python
"""Prepares a TFDS data set from raw files on disk, without TensorFlow or network.

  python scripts/prepare_data.py mnist --raw=FOLDER --data_dir=DIR

and then `--config.data.name=tfds:mnist --config.data.data_dir=DIR`. FOLDER holds the
files as their authors publish them:

  mnist, fashion_mnist  train-images-idx3-ubyte, train-labels-idx1-ubyte,
                        t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, or each .gz
  cifar10               data_batch_1.bin to data_batch_5.bin, test_batch.bin
  glue/sst2             train.tsv, dev.tsv (the split "validation")

TFDS shuffles what it prepares. `--first=5000` first keeps the first 5,000 of each
split, so the training set is the one of Song et al., in another order. Such a data set
has the name of the whole one: give it its own --data_dir.
"""

import argparse
import gzip
import io
import math
import pathlib

import numpy as np

_IDX = {"train": "train", "test": "t10k"}
_CLASSES = ["airplane", "automobile", "bird", "cat", "deer"]
_CLASSES += ["dog", "frog", "horse", "ship", "truck"]


def main(arguments=None):
    """Prepares what the command line names and prints where it lies."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=sorted(_DATA_SETS))
    parser.add_argument("--raw", type=pathlib.Path, required=True, help="raw files")
    parser.add_argument("--data_dir", help="default: TFDS's own")
    parser.add_argument("--first", type=int, default=0, help="of each split; 0: all")
    flags = parser.parse_args(arguments)
    if flags.first < 0:
        parser.error(f"--first is {flags.first}; it must be at least 0.")
    try:
        # Before TFDS, which takes a second to import.
        splits = _DATA_SETS[flags.name](flags.raw)
    except (OSError, ValueError) as error:
        parser.error(f"--raw is '{flags.raw}', but {error}.")
    print(prepare(flags.name, splits, flags.data_dir, flags.first))


def prepare(name: str, splits: dict, data_dir=None, first: int = 0):
    """Writes splits {name: list of examples} as TFDS would; returns the folder.

    Raises:
      SystemExit: the data set is already there.
    """
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text.glue  # registers it

    name, _, config = name.partition("/")
    official = tfds.builder_cls(name)

    def _split_generators(self, dl_manager):
        if name == "cifar10":
            self.info.features["label"].names = _CLASSES
        return {key: self._generate_examples(split) for key, split in splits.items()}

    def _generate_examples(self, split):
        yield from enumerate(split)

    # The name decides where TFDS writes it and looks for it.
    with tfds.core.registered.skip_registration():
        overrides = {
            "name": name,
            "__module__": __name__,
            "_split_generators": _split_generators,
            "_generate_examples": _generate_examples,
        }
        builder_class = type(official.__name__, (official,), overrides)
    builder = builder_class(
        config=config or None, data_dir=data_dir, file_format="array_record"
    )
    if builder.is_prepared():
        raise SystemExit(
            f"{builder.data_path} is already there; delete it to renew it."
        )
    tfds.disable_progress_bar()
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            try_download_gcs=False, max_examples_per_split=first or None
        )
    )
    return builder.data_path


def _mnist(raw):
    return {split: _idx_examples(raw, prefix) for split, prefix in _IDX.items()}


def _idx_examples(raw, prefix):
    images = _read_idx(raw, f"{prefix}-images-idx3-ubyte", 3)
    labels = _read_idx(raw, f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        counts = f"{len(images)} images and {len(labels)} labels"
        raise ValueError(f"its {prefix} files hold {counts}")
    return _Images(images, labels)


def _read_idx(raw, name, ndim):
    path = raw / name
    if not path.exists():
        path = _existing(raw, f"{name}.gz", name)
        content = gzip.decompress(path.read_bytes())
    else:
        content = path.read_bytes()
    start = 4 + 4 * ndim
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    sound = content[:4] == bytes([0, 0, 8, ndim])
    if not sound or len(content) != start + math.prod(shape):
        raise ValueError(f"its {path.name} is not a whole idx file")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _cifar10(raw):
    names = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)]}
    names["test"] = ["test_batch.bin"]
    return {split: _cifar_examples(raw, split, names[split]) for split in names}


def _cifar_examples(raw, split, files):
    rows = []
    for name in files:
        content = np.frombuffer(_existing(raw, name).read_bytes(), np.uint8)
        if not len(content) or len(content) % 3073:
            raise ValueError(f"its {name} does not hold rows of 3,073 bytes")
        rows.append(content.reshape(-1, 3073))
    rows = np.concatenate(rows)
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _Images(images, rows[:, 0], f"{split}_{{:05d}}")


def _sst2(raw):
    names = {"train": "train.tsv", "validation": "dev.tsv"}
    return {split: _sentences(raw, name) for split, name in names.items()}


def _sentences(raw, name):
    text = _existing(raw, name).read_text("utf-8-sig")
    header, *lines = text.removesuffix("\n").split("\n")
    columns, examples = header.split("\t"), []
    for i, line in enumerate(lines):
        row = dict(zip(columns, line.split("\t")))
        if row.get("label") not in ("0", "1") or "sentence" not in row:
            raise ValueError(f"line {i + 2} of its {name} lacks a sentence or label")
        label = int(row["label"])
        examples.append({"sentence": row["sentence"], "label": label, "idx": i})
    return examples


def _existing(raw, name, shown=None):
    path = raw / name
    if not path.is_file():
        raise FileNotFoundError(f"it holds no file {shown or name}")
    return path


class _Images:
    """Examples with their image as PNG, encoded one at a time."""

    def __init__(self, images, labels, identity=None):
        self._images, self._labels, self._identity = images, labels, identity

    def __iter__(self):
        # TFDS encodes arrays with TensorFlow, but takes encoded images as they are.
        from PIL import Image

        for i, (image, label) in enumerate(zip(self._images, self._labels)):
            png = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(image)).save(png, "PNG")
            named = {"id": self._identity.format(i)} if self._identity else {}
            yield {"image": png.getvalue(), "label": int(label), **named}


_DATA_SETS = {
    "mnist": _mnist,
    "fashion_mnist": _mnist,
    "cifar10": _cifar10,
    "glue/sst2": _sst2,
}


if __name__ == "__main__":
    main()
