"""Data sets of TFDS, read without TensorFlow."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from data_sets import load, prepared_fixture  # noqa: F401
from ml_collections import ConfigDict
from paths import ROOT

from bulk_sgd.lab.data import sources, tfds


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
    read, records = [], tfds._records
    spy = lambda source, numbers: read.append(len(numbers)) or records(source, numbers)
    monkeypatch.setattr(tfds, "_records", spy)
    found = sources.find(ConfigDict(config | {"num_train": 0, "num_test": 0}))
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
        ({"name": "tfds:ragged"}, r"its train and test inputs differ: \(\(4, \d+, 1"),
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
        import numpy as np
        from ml_collections import ConfigDict
        from bulk_sgd.lab.data import sources
        fields = {"name": "mnist5k", "num_train": 1, "num_test": 1}
        sources.load(ConfigDict(fields | {"normalization": "unit"}))
        assert not {"tensorflow", "tensorflow_datasets"} & sys.modules.keys()
        sys.modules["tensorflow"] = None  # cannot be imported
        from bulk_sgd.lab.data.reader import Reader
        x = np.arange(4)
        Reader(x, x, lambda step, steps: np.zeros((steps, 1), int), 2).read(0)
    """
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
