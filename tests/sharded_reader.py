"""Trains on a mesh of 2 x 2 CPU devices, with data read while training and in memory.

A process of its own, as sharded_runs.py; run by test_reader.py.
"""

import json
import sys

from sharded_runs import config_of, per_device

from bulk_sgd.lab.training.experiment import Experiment


def losses(read):
    """Losses of the batches of five steps, and elements of the examples on a device."""
    config = config_of("both")
    config.eval_every, config.data.streaming = 5, read
    config.subspace.data, config.subspace.subset_size = "subset", 32
    experiment = Experiment(config)
    feed = experiment.feed(0)
    _, trace = experiment.programs.train(
        *(experiment.start(), experiment.task, feed, 5, experiment.scalars()),
        projected=True,
    )
    elements = per_device(feed.inputs) if read else None
    return trace.batch_losses.tolist(), elements


if __name__ == "__main__":
    (read, elements), (resident, _) = losses(True), losses(False)
    json.dump({"read": read, "resident": resident, "elements": elements}, sys.stdout)
