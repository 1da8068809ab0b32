"""Fields that do nothing beside the names that a config chooses."""

import pytest
from tiny_runs import tiny

from bulk_sgd.lab import config
from bulk_sgd.lab.from_config import losses, optimizers, solvers, unused
from bulk_sgd.lab.models import build
from bulk_sgd.lab.training import train


def test_users_are_entries_of_the_registries():
    known = {
        "model.name": build._MODELS,
        "loss.name": losses._LOSSES,
        "optimizer.name": optimizers._OPTIMIZERS,
        "optimizer.schedule": optimizers.SCHEDULES,
        "subspace.solver": solvers._SOLVERS,
        "subspace.data": ("full", "subset", "batch"),
        "subspace.keep": solvers._KEEP,
    }
    assert known.keys() == unused.USED_BY.keys()
    for chooser, fields in unused.USED_BY.items():
        assert {user for users in fields.values() for user in users} <= {
            *known[chooser]
        }


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, set()),
        ({"model__name": "own:Net", "model__width": 9}, {"model.width"}),
        ({"model__name": "vit", "model__width": 9}, set()),
        ({"subspace__solver": "streaming", "subspace__factors": 2}, set()),
        ({"subspace__solver": "power", "subspace__factors": 2}, set()),
        ({"subspace__factors": 2}, {"subspace.factors"}),
        ({"optimizer__name": "adam", "optimizer__rho": 0.9}, {"optimizer.rho"}),
        ({"optimizer__name": "muon", "optimizer__b1": 0.8}, set()),
        ({"loss__name": "own:loss", "loss__reduction": "mean"}, {"loss.reduction"}),
    ],
)
def test_what_does_nothing_is_found(changes, fields):
    whole = {"model__hidden": (200, 200), "subspace__tol": 1e-3}
    found = tiny(**whole, subspace__max_matvecs=0, **changes)
    assert unused.find(found, config.default()).keys() == fields


def test_a_run_says_it_and_goes_on(tmp_path, monkeypatch, capsys):
    class Begun(Exception):
        pass

    def begin(*_):
        raise Begun

    monkeypatch.setattr(train, "Experiment", begin)
    with pytest.raises(Begun):
        train.train_and_evaluate(tiny(subspace__gain=0.5), tmp_path)
    told = (
        "config.subspace.gain is 0.5, which config.subspace.solver = 'lanczos' does n"
    )
    assert capsys.readouterr().err.startswith(told)
