"""Data sets prepared from raw files are read back as they were."""

import gzip
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from paths import ROOT

from bulk_sgd.lab.data import sources

SCRIPT = ROOT / "scripts" / "prepare_data.py"
spec = importlib.util.spec_from_file_location("prepare_data", SCRIPT)
prepare_data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare_data)

TSV = "sentence\tlabel\n{} one \t1\n{} two\t0\n"


def load(name, data_dir, **changes):
    fields = {"name": f"tfds:{name}", "data_dir": str(data_dir), "num_train": 0}
    fields |= {"num_test": 0, "normalization": "none", "length": 0}
    fields |= {"train_split": "train", "test_split": "test"}
    return sources.load(ConfigDict(fields | changes))


def images(shape, seed):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def idx(array):
    shape = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def write_mnist(raw, seed=0):
    """Zipped training files, plain test files; the label of each image is its place."""
    raw.mkdir()
    arrays = images((7, 28, 28), seed), images((4, 28, 28), seed + 1)
    for prefix, array in zip(("train", "t10k"), arrays):
        names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        for name, content in zip(names, (array, np.arange(len(array), dtype=np.uint8))):
            content = idx(content)
            if prefix == "train":
                name, content = f"{name}.gz", gzip.compress(content)
            (raw / name).write_bytes(content)
    return arrays


def write_cifar(raw):
    raw.mkdir()
    arrays = images((10, 3, 32, 32), 2), images((3, 3, 32, 32), 3)
    rows = [
        np.concatenate([[i], image.ravel()]).astype(np.uint8).tobytes()
        for array in arrays
        for i, image in enumerate(array)
    ]
    for i in range(5):
        content = b"".join(rows[2 * i : 2 * i + 2])
        (raw / f"data_batch_{i + 1}.bin").write_bytes(content)
    (raw / "test_batch.bin").write_bytes(b"".join(rows[10:]))
    return [array.transpose(0, 2, 3, 1) for array in arrays]


def write_sst2(raw):
    raw.mkdir()
    (raw / "train.tsv").write_text(TSV.format("so", "so"))
    (raw / "dev.tsv").write_text(TSV.format("one", "thus"))


def assert_holds(dataset, train, test):
    for array, inputs, targets in (
        (train, dataset.train_inputs, dataset.train_targets),
        (test, dataset.test_inputs, dataset.test_targets),
    ):
        assert sorted(targets.tolist()) == list(range(len(array)))
        np.testing.assert_array_equal(inputs.reshape(array.shape), array[targets])


def test_mnist_and_fashion_mnist_do_not_mix(tmp_path):
    arrays = {}
    for seed, name in enumerate(("mnist", "fashion_mnist")):
        arrays[name] = write_mnist(tmp_path / name, 10 * seed)
        raw = f"--raw={tmp_path / name}"
        prepare_data.main([name, raw, f"--data_dir={tmp_path / 'out'}"])
    for name in arrays:
        assert_holds(load(name, tmp_path / "out"), *arrays[name])


def test_cifar10_has_its_colours(tmp_path):
    arrays = write_cifar(tmp_path / "raw")
    flags = [f"--raw={tmp_path / 'raw'}", f"--data_dir={tmp_path}"]
    prepare_data.main(["cifar10", *flags])
    dataset = load("cifar10", tmp_path)
    assert_holds(dataset, *arrays)
    assert dataset.num_classes == 10


def test_sst2_is_read_as_words(tmp_path):
    write_sst2(tmp_path / "raw")
    flags = [f"--raw={tmp_path / 'raw'}", f"--data_dir={tmp_path}"]
    prepare_data.main(["glue/sst2", *flags])
    dataset = load("glue/sst2", tmp_path, test_split="validation")
    # so 2, one 3, two 4
    found = dataset.train_inputs.tolist(), dataset.test_inputs.tolist()
    labels = dataset.train_targets.tolist(), dataset.test_targets.tolist()
    assert sorted(zip(found[0], labels[0])) == [([2, 3], 1), ([2, 4], 0)]
    assert sorted(zip(found[1], labels[1])) == [([1, 4], 0), ([3, 3], 1)]


def test_first_cuts_before_the_shuffle(tmp_path):
    arrays = write_mnist(tmp_path / "raw")
    flags = [f"--raw={tmp_path / 'raw'}", f"--data_dir={tmp_path}", "--first=3"]
    prepare_data.main(["mnist", *flags])
    assert_holds(load("mnist", tmp_path), *(array[:3] for array in arrays))
    with pytest.raises(SystemExit, match="is already there"):
        prepare_data.main(["mnist", *flags])


def break_mnist(raw):
    path = raw / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


def break_cifar(raw):
    (raw / "data_batch_3.bin").write_bytes(bytes(3072))


def break_sst2(raw):
    (raw / "dev.tsv").write_text("sentence\tlabel\na\t2\n")


@pytest.mark.parametrize(
    ("name", "write", "spoil", "message"),
    [
        ("mnist", write_mnist, break_mnist, "its t10k-images-idx3-ubyte is not a whol"),
        ("cifar10", write_cifar, break_cifar, "its data_batch_3.bin does not hold row"),
        ("glue/sst2", write_sst2, break_sst2, "line 2 of its dev.tsv lacks a sentence"),
        ("cifar10", write_sst2, break_sst2, "it holds no file data_batch_1.bin."),
        ("mnist", write_sst2, break_sst2, "it holds no file train-images-idx3-ubyte."),
    ],
)
def test_unsound_raw_files_are_named(tmp_path, capsys, name, write, spoil, message):
    write(tmp_path / "raw")
    spoil(tmp_path / "raw")
    with pytest.raises(SystemExit):
        prepare_data.main([name, f"--raw={tmp_path / 'raw'}", f"--data_dir={tmp_path}"])
    assert f"--raw is '{tmp_path / 'raw'}', but {message}" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_script_runs_without_tensorflow(tmp_path):
    write_sst2(tmp_path / "raw")
    flags = ["glue/sst2", f"--raw={tmp_path / 'raw'}", f"--data_dir={tmp_path}"]
    code = f"""if True:
        import runpy, sys
        sys.argv[1:] = {flags}
        runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
        sys.exit("tensorflow" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "glue" / "sst2").is_dir()
