"""Training on data that are read while it goes on, against data in memory."""

import json
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from data_sets import prepared_fixture  # noqa: F401
from four_devices import python
from paths import ROOT
from tiny_runs import on_subset, rows_of, strip_times, tiny

from bulk_sgd.curvature import second_derivatives
from bulk_sgd.lab.data.batches import batch_indices
from bulk_sgd.lab.data.reader import Reader
from bulk_sgd.lab.training import train
from bulk_sgd.lab.training.experiment import Experiment
from bulk_sgd.lab.training.steps import Programs

pytestmark = pytest.mark.slow  # each test trains, or compiles solves of its own

SIZE, BATCH, STEPS = 1000, 4, 6


class Source:
    """Rows as if on a disk, which count how many have been read."""

    def __init__(self, dtype=np.float32, delay=0.0):
        self.rows = np.arange(2 * SIZE, dtype=dtype).reshape(SIZE, 2)
        self.delay = delay
        self.lock = threading.Lock()
        self.read = 0

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        with self.lock:
            self.read += len(index)
        time.sleep(self.delay)
        return self.rows[index]


def indices(step, steps):
    return batch_indices(3, step, steps, SIZE, BATCH)


def test_batches_are_those_of_the_indices_in_order():
    # Threads that sleep for different times finish in another order than they start.
    source, labels = Source(delay=1e-3), np.arange(SIZE)
    with Reader(source, labels, indices, STEPS) as reader:
        for first in (0, 6, 12, 300, 306, 6):  # on, ahead over an epoch, and back
            found = reader.read(first)
            expected = indices(first, STEPS)
            np.testing.assert_array_equal(found.targets, expected)
            np.testing.assert_array_equal(found.inputs, source.rows[expected])
            assert found.inputs.dtype == source.rows.dtype


def test_only_two_dispatches_are_in_memory():
    source = Source()
    with Reader(source, np.arange(SIZE), indices, STEPS) as reader:
        for call in range(1, 6):
            reader.read((call - 1) * STEPS)
            least = (call + 1) * STEPS * BATCH
            wait_until(lambda least=least: source.read >= least)
            time.sleep(0.3)  # time to read as far ahead as it ever does
            assert source.read <= least + 4 * BATCH


def test_the_last_batches_are_at_hand():
    source = Source()
    with Reader(source, np.arange(SIZE), indices, STEPS) as reader:
        first = reader.read(0)
        assert reader.read(0) is first
        reader.read(STEPS)
        assert reader.read(STEPS).targets.tolist() == indices(STEPS, STEPS).tolist()
        time.sleep(0.3)  # time to read as far ahead as it ever does
        assert source.read <= (3 * STEPS + 4) * BATCH


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_threads_end_with_the_reader():
    before = set(threading.enumerate())
    started = lambda: set(threading.enumerate()) - before
    with Reader(Source(), np.arange(SIZE), indices, STEPS) as reader:
        reader.read(0)
        assert started()
        reader.read(300)  # ends those of the first reader too
    wait_until(lambda: not started())


def test_a_run_leaves_no_threads_and_reads_what_it_measures_once(tmp_path, monkeypatch):
    opened, open_ = [], Reader._open
    monkeypatch.setattr(
        Reader, "_open", lambda self, step: opened.append(step) or open_(self, step)
    )
    config = on_subset(data__streaming=True, measures__every=5, measures__num_probes=2)
    config.arms, config.switch.step = ("bulk_sgd",), 0
    experiment = Experiment(config)
    tmp_path.joinpath("run").mkdir()
    result = train.train_together([experiment], [tmp_path / "run"])
    assert result[0]["status"] == "complete"
    assert "sum_rule_error" in rows_of(tmp_path / "run")[-1]
    # To calibrate and to train: neither a second run of a program nor a row of measures
    # takes the reader back.
    assert opened == [0]
    assert experiment._reader._iterator is None


def test_errors_of_the_source_reach_the_caller():
    class Broken(Source):
        def __getitem__(self, index):
            raise OSError("the disk is gone")

    with (
        Reader(Broken(), np.arange(SIZE), indices, STEPS) as reader,
        pytest.raises(OSError, match="the disk is gone"),
    ):
        reader.read(0)


def test_array_records_of_tfds_are_read(prepared):
    import tensorflow_datasets as tfds

    source = tfds.builder("tiny", data_dir=prepared).as_data_source("train")

    class Images:
        def __getitem__(self, rows):
            return np.stack([r["image"] for r in source.__getitems__(rows.tolist())])

    labels = np.array([record["label"] for record in source])
    places = lambda step, steps: batch_indices(0, step, steps, 6, 2)
    with Reader(Images(), labels, places, 3) as reader:
        found = reader.read(30)
    np.testing.assert_array_equal(found.targets, labels[places(30, 3)])
    # Every pixel of an image of this data set is ten times its label.
    np.testing.assert_array_equal(found.inputs[..., 1, 2, 0], 10 * found.targets)


@pytest.mark.parametrize("curvature", ["subset", "batch"])
def test_a_run_that_reads_equals_one_in_memory_bit_for_bit(tmp_path, curvature):
    ways = {}
    for way in (False, True):
        config = on_subset(data__streaming=way)
        config.subspace.data = curvature
        train.train_and_evaluate(config, tmp_path / str(way))
        ways[way] = strip_times(rows_of(tmp_path / str(way)))
    # What is measured on the training set is then measured on the subset.
    of_train = ("train_loss", "alignment_gradient", "sharpness", "sharpness_ratio")
    assert len(ways[True]) == len(ways[False]) > 8
    for read, resident in zip(ways[True], ways[False]):
        assert read["train_loss"] != resident["train_loss"]
        for row in (read, resident):
            for name in of_train:
                del row[name]
        assert read == resident


def test_states_are_equal_bit_for_bit():
    found = {}
    for way in (False, True):
        experiment = Experiment(on_subset(data__streaming=way))
        programs, state = experiment.programs, experiment.start()
        scalars = experiment.scalars(experiment.arms[1])
        for _ in range(3):
            state, _ = programs.train(
                state,
                experiment.task,
                experiment.feed(int(state.step)),
                experiment.config.eval_every,
                scalars,
                projected=True,
            )
        found[way] = state
    jax.tree.map(np.testing.assert_array_equal, found[True], found[False])


def test_a_subset_of_data_that_are_read_misses_as_much_as_in_memory(monkeypatch):
    def no_choice(*args, **kwargs):
        raise AssertionError("config.subspace.mode was not passed on")

    monkeypatch.setattr(second_derivatives, "choose", no_choice)
    found = {}
    for way in (False, True):
        changes = {"measures__every": 5, "measures__num_probes": 2}
        config = on_subset(
            data__streaming=way, subspace__mode=second_derivatives.FORWARD, **changes
        )
        experiment, programs = Experiment(config), Programs(config)
        task = experiment.task
        state = programs.init(experiment.params)
        _, facts = programs.measure(state, task, experiment.feed(0), jax.random.key(0))
        found[way] = {k: float(v) for k, v in facts.items() if "subsampling" in k}
    assert found[True]["subsampling_overlap"] < 1
    assert found[True]["subsampling_eigenvalues"] > 0
    # Their gradients, along which the projections differ, are not of the same data.
    for name in ("subsampling_overlap", "subsampling_eigenvalues"):
        assert found[True][name] == found[False][name]


def test_a_killed_run_that_reads_goes_on_bit_for_bit(tmp_path):
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import conftest, interruptions, tiny_runs\n"
        "from bulk_sgd.lab.training import train\n"
        "interruptions.die_at(12)\n"
        "config = tiny_runs.on_subset(data__streaming=True, checkpoint__every=5)\n"
        "train.train_and_evaluate(config, sys.argv[1])"
    )
    config = on_subset(data__streaming=True, checkpoint__every=5)
    killed = tmp_path / "killed"
    process = subprocess.run([sys.executable, "-c", script, str(killed)], cwd=ROOT)
    assert process.returncode == -signal.SIGKILL
    assert [row["step"] for row in rows_of(killed, "sgd")] == [8, 13]
    train.train_and_evaluate(config, killed)
    train.train_and_evaluate(config, tmp_path / "whole")
    assert strip_times(rows_of(killed)) == strip_times(rows_of(tmp_path / "whole"))


def test_lanes_read_too(tmp_path):
    config = on_subset(data__streaming=True, arms=("sgd", "bulk_sgd"))
    experiment = Experiment(config)
    (tmp_path / "lanes").mkdir()
    train.train_together([experiment], [tmp_path / "lanes"], lanes=2)
    train.train_and_evaluate(config, tmp_path / "alone")
    for arm in config.arms:
        found, expected = (
            [(row["step"], row["train_loss"]) for row in rows_of(tmp_path / way, arm)]
            for way in ("lanes", "alone")
        )
        # vmap rounds its products differently, 1e-7 per step, and SGD amplifies it.
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_batches_are_split_over_the_devices():
    result = python("tests/sharded_reader.py")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["read"] == found["resident"]
    # 5 steps of 16 images of 784 pixels, on each of four devices.
    assert found["elements"] == 5 * 16 * 784 // 4


def test_the_full_training_set_is_not_there():
    with pytest.raises(ValueError, match=r"subspace.data is 'full'.*streaming"):
        Experiment(tiny(data__streaming=True))
