"""Each of two processes reads its part of the same data."""

import json

import numpy as np
import pytest
from two_processes import start, wait

pytestmark = pytest.mark.slow

READING = """
import hashlib, json, sys
import jax, numpy as np
from bulk_sgd.lab import config
from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.data import rows
from bulk_sgd.lab.training.experiment import Experiment

read, getitem = [], rows.LazyRows.__getitem__
def counted(self, index):
    found = getitem(self, index)
    read.append([len(self), len(found)])
    return found
rows.LazyRows.__getitem__ = counted

def digest(array):
    return hashlib.sha256(distributed.whole(array).tobytes()).hexdigest()

with distributed.job("on"):
    fields = config.default()
    fields.update_from_flattened_dict(json.loads(sys.argv[1]))
    experiment = Experiment(fields)
    batches = jax.jit(lambda task, indices: task.train.take(indices))
    arrays = experiment.task, batches(experiment.task, experiment.indices(0)[3])
    digests = [digest(array) for array in jax.tree.leaves(arrays)]
    print(json.dumps({"read": read, "digests": digests}))
"""


def reading(fields, **job):
    fields |= {"data.num_train": 64, "data.num_test": 24, "batch_size": 8}
    fields |= {"subspace.data": "subset", "subspace.subset_size": 16}
    command = ["-c", READING, json.dumps(fields)]
    statuses, said = wait(start(lambda _: command, **job))
    return statuses, said


@pytest.fixture
def archive(tmp_path):
    random = np.random.default_rng(0)
    images = random.random((70, 4, 4), np.float32)
    arrays = {"x_train": images, "y_train": np.arange(70) % 5}
    arrays |= {"x_test": images[:24], "y_test": np.arange(24)}

    def write(**changes):
        np.savez(tmp_path / "a.npz", **arrays | changes)
        return tmp_path / "a.npz"

    return write


@pytest.mark.parametrize("kind", ["images", "text"])
def test_each_process_reads_its_part_of_the_same_data(tmp_path, archive, kind):
    fields = {"data.name": str(archive()), "model.hidden": (3,)}
    if kind == "text":
        (tmp_path / "a.txt").write_bytes(np.random.default_rng(0).bytes(2000))
        fields = {"data.name": f"text:{tmp_path / 'a.txt'}", "data.length": 8}
        fields |= {"data.normalization": "none", "model.name": "decoder"}
        fields |= {"model.width": 8, "loss.name": "cross_entropy"}
    found = []
    for job in ({"count": 1, "num_devices": 1}, {"count": 2, "num_devices": 2}):
        statuses, said = reading(fields, **job)
        assert set(statuses) == {0}, said
        found += [json.loads(out.splitlines()[-1]) for out, _ in said]
    alone, first, second = found
    assert alone["digests"] == first["digests"] == second["digests"]
    # Test, subset, training; of text the targets are rows too. Nothing more.
    sizes = [24, 16, 64] if kind == "images" else [24, 24, 16, 16, 64, 64]
    assert [count for _, count in alone["read"]] == sizes
    for one in (first, second):
        assert [2 * count for _, count in one["read"]] == sizes


def test_data_that_one_process_cannot_take_end_the_job(archive):
    images = np.zeros((70, 4, 4), np.float32)
    images[63] = np.nan  # the last one of process 1
    fields = {"data.name": str(archive(x_train=images)), "model.hidden": (3,)}
    statuses, said = reading(fields)
    assert 0 not in statuses
    assert "train inputs are not all finite numbers" in said[1][1]
    assert "not all finite" not in said[0][1]
