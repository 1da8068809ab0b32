"""What the tests of the lab share."""

import pytest

from bulk_sgd.lab.training import experiment
from bulk_sgd.lab.training.steps import Programs


@pytest.fixture(autouse=True, scope="module")
def shared_programs():
    """Runs of one module share programs where the cells of a sweep would.

    A test that counts or replaces them clears this dict first.
    """
    made = {}

    def programs(config, layout):
        key = experiment.program_of(config), layout
        if key not in made:
            made[key] = Programs(config, layout)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "Programs", programs)
        yield made
