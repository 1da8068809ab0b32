"""Data sets as a config names them, and some of TFDS; shared by the tests."""

import io

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from bulk_sgd.lab.data import sources


def load(name="mnist5k", **changes):
    config = {
        "name": str(name),
        "num_train": 0,
        "num_test": 0,
        "normalization": "unit",
        "data_dir": "",
        "train_split": "train",
        "test_split": "test",
    }
    return sources.load(ConfigDict(config | changes))


def write_images(path, count):
    """Random images as CIFAR-10 has them, `count` in each part; returns the arrays."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 10
    np.savez(path, **arrays)
    return arrays


@pytest.fixture(scope="module", name="prepared")
def prepared_fixture(tmp_path_factory):
    """A directory with TFDS data sets prepared offline and without TensorFlow."""
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "tiny"
        image_key = "image"

        def _info(self):
            features = {
                self.image_key: tfds.features.Image(shape=(None, None, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(6),
                "test": self._generate_examples(3),
            }

        def _generate_examples(self, number):
            for label in range(number):
                png = io.BytesIO()
                pixels = np.full(self.size(label), 10 * label, np.uint8)
                Image.fromarray(pixels).save(png, "PNG")
                yield label, {self.image_key: png.getvalue(), "label": label}

        def size(self, label):
            return (4, 5)

    class Ragged(Tiny, skip_registration=True):
        name = "ragged"

        def size(self, label):
            return (4, 5 + label)

    class Unnamed(Tiny, skip_registration=True):
        name = "unnamed"
        image_key = "picture"

    directory = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    for builder_class in (Tiny, Ragged, Unnamed):
        builder = builder_class(data_dir=directory)
        builder.download_and_prepare(file_format="array_record")
    return directory
