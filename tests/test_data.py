import io
import itertools
import json
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from bulk_sgd import data, models

CIFAR = pathlib.Path(__file__).parents[2] / "shared" / "data" / "cifar10_5k.npz"


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
    return data.load(ConfigDict(config | changes))


ARRAYS = {
    "x_train": np.arange(7 * 4 * 5 * 3, dtype=np.uint8).reshape(7, 4, 5, 3),
    "y_train": np.array([0, 1, 2, 0, 1, 2, 3]),
    "x_test": np.full((2, 4, 5, 3), 51, np.uint8),
    "y_test": np.array([1, 4], np.uint8),
}


@pytest.fixture
def npz(tmp_path):
    def write(**changes):
        arrays = {k: v for k, v in (ARRAYS | changes).items() if v is not None}
        np.savez(tmp_path / "small.npz", **arrays)
        return tmp_path / "small.npz"

    return write


def test_mnist5k_is_the_original_order_in_unit_range():
    dataset = load()
    assert dataset.train_inputs.shape == (5000, 28, 28, 1)
    assert dataset.test_inputs.shape == (1000, 28, 28, 1)
    assert dataset.train_targets[:5].tolist() == [5, 0, 4, 1, 9]
    assert dataset.test_targets[:5].tolist() == [7, 2, 1, 0, 4]
    assert (dataset.name, dataset.num_classes) == ("mnist5k", 10)
    for inputs in (dataset.train_inputs, dataset.test_inputs):
        assert inputs.dtype == np.float32
        assert (inputs.min(), inputs.max()) == (0, 1)
    assert dataset.train_targets.dtype == dataset.test_targets.dtype == np.int32


def test_selection_takes_the_first_and_keeps_the_number_of_classes():
    dataset = load(num_train=2, num_test=3)
    assert dataset.train_targets.tolist() == [5, 0]
    assert len(dataset.train_inputs) == 2
    assert dataset.test_targets.tolist() == [7, 2, 1]
    assert len(dataset.test_inputs) == 3
    assert dataset.num_classes == 10


def test_npz_keeps_colour_channels_and_counts_classes_of_both_parts(npz):
    dataset = load(npz(), normalization="none")
    np.testing.assert_array_equal(dataset.train_inputs, ARRAYS["x_train"])
    np.testing.assert_array_equal(dataset.train_targets, ARRAYS["y_train"])
    assert dataset.train_inputs.dtype == np.float32
    assert dataset.num_classes == 5


def test_npz_of_grey_images_gains_a_channel(npz):
    grey = {part: ARRAYS[part][..., 0] for part in ("x_train", "x_test")}
    dataset = load(npz(**grey))
    np.testing.assert_allclose(dataset.test_inputs, np.full((2, 4, 5, 1), 0.2))
    np.testing.assert_allclose(dataset.train_inputs[..., 0], grey["x_train"] / 255)


def test_unit_leaves_floats_as_they_are(npz):
    images = {part: ARRAYS[part] / 419.0 for part in ("x_train", "x_test")}
    inputs = load(npz(**images)).train_inputs
    np.testing.assert_allclose(inputs, images["x_train"], rtol=1e-6)


def test_standard_uses_the_selected_training_images_per_channel(npz):
    dataset = load(npz(), num_train=4, normalization="standard")
    pixels = ARRAYS["x_train"][:4].reshape(-1, 3) / 255
    mean, std = pixels.mean(axis=0), pixels.std(axis=0)
    expected = (ARRAYS["x_train"][:4] / 255 - mean) / std
    np.testing.assert_allclose(dataset.train_inputs, expected, atol=1e-5)
    np.testing.assert_allclose(dataset.test_inputs[0, 0, 0], (0.2 - mean) / std, 1e-5)


def test_standard_survives_a_constant_channel(npz):
    images = ARRAYS["x_train"].copy()
    images[..., 1] = 9
    inputs = load(npz(x_train=images), normalization="standard").train_inputs
    assert np.isfinite(inputs).all()
    assert not inputs[..., 1].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "lacks the array y_test"),
        ({"x_train": ARRAYS["x_train"][:5]}, r"train labels have shape \(7,\) for 5"),
        ({"y_train": ARRAYS["y_train"][:, None]}, r"train labels have shape \(7, 1\)"),
        ({"x_test": np.zeros((2, 60), np.uint8)}, r"differ: \(\(4, 5, 3\), \(60,\)\)"),
        (
            {"x_test": np.zeros(2, np.uint8)},
            r"test images have shape \(2,\), not \(N, h",
        ),
        ({"x_test": np.uint8(3)}, r"test images have shape \(\)"),
        ({"x_test": np.zeros((2, 0))}, r"test images have shape \(2, 0\), which holds"),
        (
            {"x_train": np.array([{}] * 7)},
            "x_train holds Python objects rather than nu",
        ),
        ({"y_test": np.array(["a", "b"])}, r"test labels \(<U1\) are not all"),
        ({"x_train": np.full((7, 4, 5, 3), np.nan)}, "train images are not all finite"),
        ({"x_test": np.full((2, 4, 5, 3), 1e300)}, "test images are not all finite"),
        ({"x_test": np.zeros((2, 5, 5, 3))}, r"\(4, 5, 3\), \(5, 5, 3\)"),
        ({"x_train": ARRAYS["x_train"].astype(int)}, "dtype int64, neither uint8 nor"),
        ({"y_train": np.ones(7)}, r"train labels \(float64\) are not .* integers"),
        ({"y_test": np.array([0, -1])}, r"test labels \(int64\) are not all non-neg"),
        ({"x_train": np.zeros((0, 4, 5)), "y_train": np.zeros(0, int)}, r"\(0, 4, 5\)"),
    ],
)
def test_unsound_npz_is_refused(npz, changes, message):
    path = npz(**changes)
    with pytest.raises(
        ValueError, match=rf"^config\.data\.name is '{path}', but .*{message}"
    ):
        load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "minst5k"},
            r"^config\.data\.name is 'minst5k', but must be mnist5k, sonnets, ",
        ),
        (
            {"name": "absent.npz"},
            r"^config\.data\.name is 'absent\.npz', but .*existing \.npz",
        ),
        (
            {"normalization": "zscore"},
            r"^config\.data\.normalization is 'zscore'.*'standard'",
        ),
        ({"num_train": 5001}, r"^config\.data\.num_train is 5001, but there are 5000"),
        ({"num_test": 1001}, r"^config\.data\.num_test is 1001, but there are 1000"),
        ({"num_train": -1}, r"^config\.data\.num_train is -1"),
    ],
)
def test_wrong_fields_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        load(**changes)


def test_a_file_that_only_ends_in_npz_is_refused(tmp_path):
    path = tmp_path / "text.npz"
    path.write_text("not an archive")
    with pytest.raises(ValueError, match=r"text\.npz', but it is not the archive that"):
        load(path)
    with pytest.raises(ValueError, match="but it is not the archive that"):
        load(tmp_path)


def test_a_damaged_archive_is_refused(npz):
    path = npz()
    content = bytearray(path.read_bytes())
    content[200:220] = bytes(20)  # inside the first array
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"but its x_train is damaged: Bad CRC-32"):
        load(path)


@pytest.mark.parametrize("scaled", [ARRAYS["x_train"] / 1.0, ARRAYS["x_train"] / -419])
def test_unit_refuses_floats_of_another_range(npz, scaled):
    path = npz(x_train=scaled)
    refusal = rf"^config\.data\.normalization is 'unit', but .* {scaled.max():g}, not 0"
    with pytest.raises(ValueError, match=refusal):
        load(path)
    assert load(path, normalization="none").train_inputs.max() == scaled.max()
    standard = load(path, normalization="standard").train_inputs
    np.testing.assert_allclose(standard.std(axis=(0, 1, 2)), 1, atol=1e-5)


def test_flat_features_go_through_an_mlp(npz):
    flat = {x: ARRAYS[x].reshape(len(ARRAYS[x]), -1) for x in ("x_train", "x_test")}
    dataset = load(npz(**flat))
    np.testing.assert_allclose(dataset.train_inputs, flat["x_train"] / 255, rtol=1e-6)
    standard = load(npz(**flat), normalization="standard").train_inputs
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(standard.std(axis=0), 1, atol=1e-5)
    fields = {"name": "mlp", "hidden": (4,), "activation": "tanh", "init": "torch"}
    shape = dataset.train_inputs.shape[1:]
    model_fn, params = models.build(ConfigDict(fields), shape, dataset.num_classes, 0)
    assert model_fn(params, dataset.test_inputs).shape == (2, 5)


def test_cnn_takes_cifar():
    if not CIFAR.exists():
        pytest.skip("the CIFAR-10 excerpt is not part of the repository")
    dataset = load(CIFAR, num_train=20, num_test=10, normalization="standard")
    assert dataset.train_targets[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    np.testing.assert_allclose(dataset.train_inputs.std(axis=(0, 1, 2)), 1, atol=1e-4)
    config = {"name": "cnn", "channels": (4, 5), "pool": "average"}
    config |= {"activation": "relu", "init": "lecun_normal"}
    shape = dataset.train_inputs.shape[1:]
    model_fn, params = models.build(ConfigDict(config), shape, dataset.num_classes, 0)
    outputs = model_fn(params, dataset.test_inputs)
    assert outputs.shape == (10, 10)
    assert np.isfinite(outputs).all()


@pytest.mark.parametrize("cuts", [(0, 1, 12), (0, 4, 5, 12), (0, 3, 6, 9, 12)])
def test_batches_do_not_depend_on_how_steps_are_cut(cuts):
    whole = data.batch_indices(3, 0, 12, num_examples=11, batch_size=3)
    # An empty cache is what a resumed run starts from.
    data._epoch_order.cache_clear()
    parts = [
        data.batch_indices(3, start, stop - start, 11, 3)
        for start, stop in itertools.pairwise(cuts)
    ]
    assert whole.shape == (12, 3)
    assert whole.dtype == np.int32
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_every_epoch_is_its_own_permutation_without_the_remainder():
    rows = data.batch_indices(0, 0, 4 * 3, num_examples=41, batch_size=10)
    epochs = rows.reshape(3, 40)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 40
        assert set(epoch.tolist()) < set(range(41))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_seeds_differ_even_where_their_words_and_epochs_coincide():
    one_epoch = 4
    orders = {
        tuple(data.batch_indices(seed, epoch * one_epoch, one_epoch, 40, 10).ravel())
        for seed, epoch in [(5, 0), (6, 0), (5, 1), (5 + 2**32, 0), (5 + 2**32, 1)]
    }
    assert len(orders) == 5


def test_batch_order_never_changes():
    # Published runs are repeated by these numbers: a change here breaks them.
    rows = data.batch_indices(0, 0, 2, num_examples=10, batch_size=5)
    assert rows.tolist() == [[1, 4, 5, 6, 8], [2, 0, 3, 9, 7]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 1, 10, 5), r"seed -1"),
        ((0, -2, 1, 10, 5), r"start_step -2"),
        ((0, 0, 1, 10, 11), r"batch_size is 11, but 1 to 10"),
        ((0, 0, 1, 10, 0), r"batch_size is 0, but 1 to 10"),
    ],
)
def test_wrong_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.batch_indices(*arguments)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A directory with TFDS data sets prepared offline and without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")

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


def test_tfds_is_read_whole_and_in_its_own_order(prepared):
    dataset = load("tfds:tiny", data_dir=str(prepared), normalization="none")
    assert dataset.train_inputs.shape == (6, 4, 5, 1)
    assert dataset.test_inputs.shape == (3, 4, 5, 1)
    assert sorted(dataset.train_targets.tolist()) == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(
        dataset.train_inputs[:, 0, 0, 0], 10 * dataset.train_targets
    )
    assert dataset.num_classes == 10


def test_tfds_reads_no_more_than_is_asked_for(prepared):
    # Images of more than one shape are refused as soon as two of them are read.
    counts = {"num_train": 1, "num_test": 1, "test_split": "train"}
    dataset = load("tfds:ragged", data_dir=str(prepared), **counts)
    assert len(dataset.train_inputs) == len(dataset.test_inputs) == 1


def test_tfds_reads_the_records_that_are_indexed(prepared, monkeypatch):
    config = {"name": "tfds:tiny", "data_dir": str(prepared)}
    config |= {"normalization": "none", "train_split": "train", "test_split": "test"}
    whole = load(**config)
    read, records = [], data._records
    spy = lambda source, numbers: read.append(len(numbers)) or records(source, numbers)
    monkeypatch.setattr(data, "_records", spy)
    found = data.find(ConfigDict(config | {"num_train": 0, "num_test": 0}))
    for name in ("train_inputs", "train_targets"):
        part = getattr(whole, name)[2:4]
        np.testing.assert_array_equal(getattr(found, name)[2:4], part)
    assert read == [2, 2]


def test_tfds_takes_splits_slices_and_counts(prepared):
    whole = load("tfds:tiny", data_dir=str(prepared)).train_targets
    dataset = load(
        "tfds:tiny:1.0.0",
        data_dir=str(prepared),
        train_split="train[2:]",
        test_split="train",
        num_train=3,
    )
    np.testing.assert_array_equal(dataset.train_targets, whole[2:5])
    np.testing.assert_array_equal(dataset.test_targets, whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "tfds:ragged", "test_split": "train"},
            r"its images have shapes \(4, \d+, 1\), \(4, \d+, 1\)",
        ),
        ({"name": "tfds:ragged"}, r"its train and test images differ: \(\(4, \d+, 1"),
        (
            {"name": "tfds:unnamed"},
            r"it has \['label', 'picture'\], not image or sentence and",
        ),
        ({"num_train": 7}, r"^config\.data\.num_train is 7, but there are 6"),
        (
            {"test_split": "validation"},
            r"^config\.data\.test_split is 'validation'.*'test': 3",
        ),
        (
            {"train_split": "train[:9]"},
            r"^config\.data\.train_split is 'train\[:9\]'.*: 6",
        ),
        ({"name": "tfds:"}, r"^config\.data\.name is 'tfds:', but must be 'tfds:NAME"),
        ({"name": "tfds:huggingface:mnist"}, r"but must be 'tfds:NAME"),
    ],
)
def test_unsound_tfds_is_refused(prepared, changes, message):
    with pytest.raises(ValueError, match=message):
        load(**{"name": "tfds:tiny", "data_dir": str(prepared)} | changes)


@pytest.mark.parametrize("name", ["mnist", "tiny", "mnist:9.9.9", "emnist/absent"])
def test_tfds_that_is_not_prepared_says_at_once_how_to_prepare(tmp_path, name):
    pytest.importorskip("tensorflow_datasets")
    start = time.monotonic()
    message = rf"'tfds:{name}', but is not prepared in config\.data\.data_dir "
    message += rf"'{tmp_path}': run "
    message += rf"tfds\.builder\('{name}', data_dir='{tmp_path}'\)\.download_and_prepar"
    with pytest.raises(ValueError, match=message):
        load(f"tfds:{name}", data_dir=str(tmp_path))
    assert time.monotonic() - start < 10
    assert not list(tmp_path.iterdir())


def test_tfds_in_another_format_is_refused(prepared, tmp_path):
    shutil.copytree(prepared / "tiny", tmp_path / "tiny")
    info = tmp_path / "tiny" / "1.0.0" / "dataset_info.json"
    info.write_text(
        json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"})
    )
    with pytest.raises(
        ValueError, match=r"prepared as tfrecord, not array_record: run"
    ):
        load("tfds:tiny", data_dir=str(tmp_path))


def test_neither_tfds_nor_tensorflow_is_imported_for_other_data():
    code = """if True:
        import sys
        from ml_collections import ConfigDict
        from bulk_sgd import data
        fields = {"name": "mnist5k", "num_train": 1, "num_test": 1}
        data.load(ConfigDict(fields | {"normalization": "unit"}))
        sys.exit(bool({"tensorflow", "tensorflow_datasets"} & sys.modules.keys()))
    """
    root = pathlib.Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
