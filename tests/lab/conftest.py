"""What the tests of the lab share."""

import pytest

from bulk_sgd.lab.training import experiment
from bulk_sgd.lab.training.steps import Programs

_KEPT = {}  # from one module to the next: they are few, and slow to trace


@pytest.fixture(autouse=True, scope="module")
def shared_programs():
    """Runs share programs where the cells of a sweep would.

    A test that counts or replaces them clears this dict first.
    """

    def programs(config, layout):
        key = experiment.program_of(config), layout
        if key not in _KEPT:
            _KEPT[key] = Programs(config, layout)
        return _KEPT[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "Programs", programs)
        yield _KEPT
