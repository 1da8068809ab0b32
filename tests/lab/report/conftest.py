"""The one real run that the tests of reports and analyses share."""

import pytest
from tiny_runs import tiny

from bulk_sgd.lab.report import saving
from bulk_sgd.lab.training import train


@pytest.fixture(autouse=True, scope="module")
def only_png():
    """Figures are saved as PNG alone, which is faster; one test wants all kinds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "BESIDE", {})
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The workdir of a run with measures and all checkpoints; leave it as it is."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny(
        eval_every=2, checkpoint__every=2, checkpoint__keep=0, measures__every=10,
        measures__num_probes=4,
    )  # fmt: skip
    train.train_and_evaluate(config, workdir)
    return workdir
