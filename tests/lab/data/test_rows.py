"""Rows that are read when they are asked for."""

import tracemalloc

import numpy as np
import pytest
from ml_collections import ConfigDict

from bulk_sgd.lab.data import npz, rows, sources

IMAGES = np.random.default_rng(0).integers(0, 256, (10_000, 3, 4, 2), np.uint8)


def rows_of(array):
    return rows.LazyRows(array.shape, array.dtype, array.__getitem__)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("length", [7, 4096, 10_000])
def test_moments_are_those_of_all_rows(dtype, length):
    array = IMAGES[:length].astype(dtype)
    mean, std = rows_of(array).moments()
    # Sums of ten thousand float64 numbers.
    np.testing.assert_allclose(mean, array.mean((0, 1, 2), dtype=np.float64), 1e-12)
    np.testing.assert_allclose(std, array.std((0, 1, 2), dtype=np.float64), rtol=1e-12)


def test_moments_survive_a_mean_far_from_zero():
    array = 1e8 + IMAGES.astype(np.float64)
    # Sums of squares would have lost eight digits of it.
    expected = IMAGES.std((0, 1, 2), dtype=np.float64)
    np.testing.assert_allclose(rows_of(array).moments()[1], expected, rtol=1e-6)


def test_mapped_rows_keep_their_numbers():
    doubled = rows_of(np.arange(6.0)).map(lambda x: 2 * x, np.float32)
    assert doubled[::-2].tolist() == [10, 6, 2]
    assert doubled[np.array([3, 3])].tolist() == [6, 6]
    assert (doubled.ndim, len(doubled), doubled.dtype) == (1, 6, np.float32)


ARRAYS = {
    "x_train": np.asfortranarray(IMAGES[:5000]),
    "y_train": np.arange(5000) % 7,
    "x_test": IMAGES[-10:],
    "y_test": np.arange(10),
}


def fields(path, **changes):
    config = {"name": str(path), "num_train": 0, "num_test": 0}
    config |= {"normalization": "unit", "length": 4, "test_path": "", "vocab_size": 0}
    return ConfigDict(config | changes)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("normalization", ["unit", "standard", "none"])
def test_parts_are_those_of_the_whole(tmp_path, save, normalization):
    save(tmp_path / "a.npz", **ARRAYS)
    config = fields(tmp_path / "a.npz", normalization=normalization)
    found, whole = sources.find(config), sources.load(config)
    assert found.num_classes == whole.num_classes == 10
    for start, stop in ((0, 2), (1249, 2500), (4999, 5000)):
        for name in ("train_inputs", "train_targets"):
            part = getattr(found, name)[start:stop]
            np.testing.assert_array_equal(part, getattr(whole, name)[start:stop])
            assert part.dtype == getattr(whole, name).dtype
    assert found.train_inputs.shape == whole.train_inputs.shape


def peak(fn):
    tracemalloc.start()
    fn()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.parametrize("normalization", ["unit", "standard"])
def test_memory_is_that_of_the_part(tmp_path, normalization):
    images = np.zeros((100_000, 20, 20), np.uint8)
    images[0] = 1
    labels = np.zeros(len(images), np.uint8)
    small = {"x_test": images[:4], "y_test": labels[:4]}
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, **small)
    config = fields(tmp_path / "a.npz", normalization=normalization)
    most = peak(lambda: sources.find(config).train_inputs[: len(images) // 100])
    # In float32 all of it takes four times as much; the statistics hold a block.
    assert most < images.nbytes / (1 if normalization == "standard" else 10)
    assert peak(lambda: sources.load(config)) > 4 * images.nbytes


def test_running_text_is_read_by_examples(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(256)) * 40_000)
    config = fields(f"text:{tmp_path / 'a.txt'}", normalization="none")
    assert peak(lambda: sources.find(config).train_inputs[:4]) < 1e6
    found, whole = sources.find(config), sources.load(config)
    for name in ("train_inputs", "train_targets", "test_inputs", "test_targets"):
        part, all_ = getattr(found, name)[3:6], getattr(whole, name)
        np.testing.assert_array_equal(part, all_[3:6])
        assert (part.dtype, len(all_)) == (np.int32, len(getattr(found, name)))


def test_only_process_0_reads_all_for_the_checksum(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    path = tmp_path / "a.npz"
    content = bytearray(path.read_bytes())
    content[90_000] ^= 1  # inside the images
    path.write_bytes(content)
    config = fields(path)
    with pytest.raises(ValueError, match="its x_train is damaged: Bad CRC-32"):
        sources.find(config)
    monkeypatch.setattr(npz.jax, "process_index", lambda: 1)
    assert len(sources.find(config).train_inputs[:3]) == 3
