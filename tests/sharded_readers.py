"""Trains on a mesh of 2 x 2 CPU devices with data read while training and in memory.

A process of its own, as sharded_runs.py; run by test_reader.py.
"""

import json
import sys

from sharded_runs import config_of, per_device

from bulk_sgd.lab.training.experiment import Experiment
from bulk_sgd.lab.training.steps import Programs


def losses(reads):
    """Of the batches of five steps, and the elements of the examples on a device."""
    config = config_of("both")
    config.eval_every, config.data.streaming = 5, reads
    config.subspace.data, config.subspace.subset_size = "subset", 32
    experiment = Experiment(config)
    programs = Programs(config)
    state = programs.init(experiment.params)
    feed = experiment.feed(0)
    _, trace = programs.train(
        state, experiment.task, feed, 5, experiment.scalars(), projected=True
    )
    elements = per_device(feed.inputs) if reads else None
    return trace.batch_losses.tolist(), elements


if __name__ == "__main__":
    (read, elements), (resident, _) = losses(True), losses(False)
    json.dump({"read": read, "resident": resident, "elements": elements}, sys.stdout)
