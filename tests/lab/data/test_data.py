"""Data of the package and of .npz files, and the order of their batches."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from data_sets import load
from ml_collections import ConfigDict
from paths import SHARED

from bulk_sgd.lab.data import batches
from bulk_sgd.lab.data.batches import batch_indices
from bulk_sgd.lab.models.build import build_model

CIFAR = SHARED / "cifar10_5k.npz"

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
            r"test inputs have shape \(2,\), not \(N, h",
        ),
        ({"x_test": np.uint8(3)}, r"test inputs have shape \(\)"),
        ({"x_test": np.zeros((2, 0))}, r"test inputs have shape \(2, 0\), which holds"),
        (
            {"x_train": np.array([{}] * 7)},
            "x_train holds Python objects rather than nu",
        ),
        ({"y_test": np.array(["a", "b"])}, r"test labels \(<U1\) are not all"),
        ({"x_train": np.full((7, 4, 5, 3), np.nan)}, "train inputs are not all finite"),
        ({"x_test": np.full((2, 4, 5, 3), 1e300)}, "test inputs are not all finite"),
        ({"x_test": np.zeros((2, 5, 5, 3))}, r"\(4, 5, 3\), \(5, 5, 3\)"),
        ({"x_train": ARRAYS["x_train"].astype(int)}, "dtype int64, neither uint8 nor"),
        ({"y_train": np.ones(7)}, r"labels differ: \['float32 \(\)', 'int32 \(\)'\]"),
        ({"y_train": np.ones(7, bool)}, r"train labels \(bool\) are not .* integers"),
        ({"y_test": np.array([0, -1])}, r"not all non-.* or floats: label 1 is -1\."),
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
        ({"name": "minst5k"}, r"name is 'minst5k', but must be mnist5k, sonnets, "),
        ({"name": "absent.npz"}, rf"'{Path.cwd()}/absent\.npz' does not exist"),
        ({"normalization": "zscore"}, r"normalization is 'zscore'.*'standard'"),
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
    model_fn, params = build_model(ConfigDict(fields), shape, dataset.num_classes, 0)
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
    model_fn, params = build_model(ConfigDict(config), shape, dataset.num_classes, 0)
    outputs = model_fn(params, dataset.test_inputs)
    assert outputs.shape == (10, 10)
    assert np.isfinite(outputs).all()


@pytest.mark.parametrize("cuts", [(0, 1, 12), (0, 4, 5, 12), (0, 3, 6, 9, 12)])
def test_batches_do_not_depend_on_how_steps_are_cut(cuts):
    whole = batch_indices(3, 0, 12, num_examples=11, batch_size=3)
    # An empty cache is what a resumed run starts from.
    batches._epoch_order.cache_clear()
    parts = [
        batch_indices(3, start, stop - start, 11, 3)
        for start, stop in itertools.pairwise(cuts)
    ]
    assert whole.shape == (12, 3)
    assert whole.dtype == np.int32
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_every_epoch_is_its_own_permutation_without_the_remainder():
    rows = batch_indices(0, 0, 4 * 3, num_examples=41, batch_size=10)
    epochs = rows.reshape(3, 40)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 40
        assert set(epoch.tolist()) < set(range(41))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_seeds_differ_even_where_their_words_and_epochs_coincide():
    one_epoch = 4
    orders = {
        tuple(batch_indices(seed, epoch * one_epoch, one_epoch, 40, 10).ravel())
        for seed, epoch in [(5, 0), (6, 0), (5, 1), (5 + 2**32, 0), (5 + 2**32, 1)]
    }
    assert len(orders) == 5


def test_batch_order_never_changes():
    # Published runs are repeated by these numbers: a change here breaks them.
    rows = batch_indices(0, 0, 2, num_examples=10, batch_size=5)
    assert rows.tolist() == [[1, 4, 5, 6, 8], [2, 0, 3, 9, 7]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 1, 10, 5), r"seed is -1"),
        ((0, -2, 1, 10, 5), r"start_step is -2"),
        ((0, 0, 1, 10, 11), r"batch_size is 11; it must be from 1 to 10"),
        ((0, 0, 1, 10, 0), r"batch_size is 0; it must be from 1 to 10"),
    ],
)
def test_wrong_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        batch_indices(*arguments)
