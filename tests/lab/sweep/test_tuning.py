"""Tuned sweeps: the best value, the values that a grid is widened by, and refusals."""

import json
import math

import pytest
from tiny_runs import quiet, tiny
from written_studies import write_tuned

from bulk_sgd.lab.files import identities, metrics, record
from bulk_sgd.lab.from_config import arms as arms_lib
from bulk_sgd.lab.sweep import grid, sweep, tuning, workdir
from bulk_sgd.lab.sweep.tuning import Tuning

RATE = "optimizer.learning_rate"
TUNE = Tuning(RATE, widen=2)


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({0.1: [3, 3, 3], 0.2: [2, 2, 9], 0.4: [4, 1, 4]}, 0.2),  # by the median
        ({0.1: [2], 0.2: [2]}, 0.1),
        ({0.1: [5, 5, 5], 0.2: [1, math.inf, math.inf]}, 0.1),  # most seeds diverged
        ({0.1: [5, 5], 0.2: [1, math.inf]}, 0.1),  # half of them did
        ({0.1: [math.inf], 0.2: [math.inf]}, None),
    ],
)
def test_best_value(losses, best):
    assert TUNE.best(losses) == best


def test_loss_of_an_arm_is_a_mean_of_its_last_rows(tmp_path):
    cells = write_tuned(tmp_path, {"a": {0.1: (2.0,), 0.2: (math.nan,)}})
    folder = workdir.cell_folder(tmp_path, 0)
    assert tuning.losses(folder, TUNE) == {"sgd": 2.0}
    ends = [row["train_loss"] for row in metrics.read(folder)[0]["sgd"]]
    mean = sum(ends[-3:]) / 3
    found = tuning.losses(folder, Tuning(RATE, rows=3))
    assert found == {"sgd": pytest.approx(mean)}
    assert tuning.losses(folder, Tuning(RATE, "test_loss")) == {"sgd": 4.0}
    assert tuning.losses(workdir.cell_folder(tmp_path, 1), TUNE) == {"sgd": math.inf}
    assert tuning.losses(tmp_path / "nowhere", TUNE) == {}
    assert len(cells) == 2


def test_an_arm_that_a_diverged_prefix_is_given_has_diverged(tmp_path):
    plain = lambda *arms: identities.plain(tiny(arms=arms))
    found = {"name": "x", "status": "diverged", "prefix": {"status": "diverged"}}
    arms = {"sgd": {"label": "SGD", "status": "pending"}}
    record.write(tmp_path, found | {"config": plain("sgd"), "arms": arms})
    (tmp_path / metrics.FILE).touch()
    grown = identities.Identity(plain("sgd", "dom_sgd"), {})
    pending = arms_lib.pending(grown.config["arms"])
    assert record.claim(tmp_path, grown, pending) == record.read(tmp_path)
    assert record.read(tmp_path)["config"] == grown.config
    assert record.read(tmp_path)["arms"]["dom_sgd"]["label"] == "Dom-SGD"
    assert tuning.losses(tmp_path, TUNE) == {"sgd": math.inf, "dom_sgd": math.inf}


@pytest.mark.parametrize(
    ("ends", "added"),
    [
        ({0.1: 3.0, 0.2: 2.0, 0.4: 3.0}, []),
        ({0.1: 1.0, 0.2: 2.0, 0.4: 3.0}, [0.05]),
        ({0.1: 3.0, 0.2: 2.0, 0.8: 1.0}, [3.2]),
        ({0.1: 3.0, 0.2: math.nan, 0.4: math.nan}, [0.05]),
        ({0.1: math.nan, 0.4: math.nan}, [0.025]),
    ],
)
def test_a_grid_is_widened_where_its_best_value_is_at_its_edge(tmp_path, ends, added):
    cells = write_tuned(tmp_path, {"a": {value: (x, x) for value, x in ends.items()}})
    more = tuning.widened(tmp_path, cells, cells, TUNE, tiny())
    assert [(c[RATE], c["seed"]) for c in more] == [
        (x, s) for x in added for s in (0, 1)
    ]
    assert all(cell["label"] == "a" for cell in more)


def test_widening_ends_at_its_bound(tmp_path):
    cells = write_tuned(tmp_path, {"a": {0.1: (1.0,), 0.2: (2.0,), 0.4: (3.0,)}})
    more = lambda count: tuning.widened(tmp_path, cells, cells[:count], TUNE, tiny())
    assert [cell[RATE] for cell in more(2)] == [0.05]  # one of two is left
    assert more(1) == []


def test_the_edge_of_the_reference_is_widened_first():
    ends = [{"bulk_sgd": x, "sgd": 4.0 - x} for x in (1.0, 2.0, 3.0)]
    by_value = {0.1: [0], 0.2: [1], 0.4: [2]}
    outer = lambda **more: tuning._outer(
        [*by_value], by_value, ends, Tuning(RATE, **more)
    )
    assert outer(reference="sgd") == [(0.8, 0.4), (0.05, 0.1)]
    assert outer(reference="bulk_sgd") == [(0.05, 0.1), (0.8, 0.4)]


@pytest.mark.parametrize(
    ("field", "values", "told"),
    [
        ("optimizer.momentum", (1.0, 2.25), "2.25: config.optimizer.momentum"),
        ("batch_size", (30, 61), "61: config.batch_size"),  # of 60 examples
    ],
)
def test_values_that_do_not_fit_are_said_and_left_out(field, values, told):
    cells, said = grid.values(field, values), []
    assert sweep._fitting(tiny(), cells, None, Tuning(field), said.append) == cells[:1]
    (line,) = said
    assert line.startswith(f"{field} is not tried at {told}")


@pytest.mark.parametrize(
    ("ends", "added"),
    [
        ({4: 3.0, 6: 1.0}, [9]),
        ({4: 1.0, 6: 3.0}, [3]),  # of 2.67
        ({1: 1.0, 2: 3.0}, []),
        ({4: 3.0, 5: 1.0, 7: 1.0}, []),  # 5 is inside
    ],
)
def test_an_integer_field_is_widened_by_integers(tmp_path, ends, added):
    by_value = {value: (end,) for value, end in ends.items()}
    cells = write_tuned(tmp_path, {"a": by_value}, field="batch_size")
    tune = Tuning("batch_size")
    more = tuning.widened(tmp_path, cells, cells, tune, tiny())
    assert [(cell["batch_size"], type(cell["batch_size"])) for cell in more] == [
        (value, int) for value in added
    ]


@pytest.mark.slow
def test_tuned_sweep_goes_on_where_it_was(tmp_path, monkeypatch):
    base = tiny(arms=("sgd",), num_steps=10, switch__step=2, eval_every=2)
    cells = grid.labelled("plain", grid.values(RATE, (0.001, 0.004)))
    tune = Tuning(RATE, widen=2, reference="plain")
    said = []
    go = lambda **options: sweep.run_sweep(
        base, cells, tmp_path, say=said.append, **options
    )
    assert go() == ["complete"] * 2
    assert go(tune=tune) == ["complete"] * 4
    added = workdir.read(tmp_path)["added"]
    assert [cell[RATE] for cell in added] == [0.016, 0.064]
    assert workdir.read(tmp_path)["cells"] == json.loads(json.dumps(cells))
    assert any("at the edge of a grid: trying [0.016] too." in line for line in said)
    said.clear()
    assert go(tune=tune, only=3) == ["complete"] * 4
    assert go(tune=tune) == ["complete"] * 4
    assert said == ["1 of 1 cells had ended before.", "4 of 4 cells had ended before."]
    # One of the values that were added, which leaves room for another, and a new one.
    cells += grid.labelled("plain", grid.values(RATE, (0.002, 0.016)))
    assert go(tune=tune) == ["complete"] * 6
    added = workdir.read(tmp_path)["added"]
    assert [cell[RATE] for cell in added] == [0.016, 0.064, 0.002, 0.256]
    assert go(tune=tune, only=4) == ["complete"] * 6
    seeds = [{RATE: -1.0, "seed": seed} for seed in (0, 1)]
    monkeypatch.setattr(tuning, "widened", lambda *_: seeds)
    assert go(tune=tune) == ["complete"] * 6
    assert said[-1].startswith(f"{RATE} is not tried at -1.0:")


@pytest.mark.parametrize(
    ("cells", "tune", "match"),
    [
        ([{"seed": 1}], RATE, "learning_rate is tuned, but cell 0 has None; every"),
        ([{RATE: 0}], RATE, "is tuned, but cell 0 has 0; every cell must set it"),
        ([{RATE: 0.1}], RATE, r"has the single value 0\.1 in cell 0; each setting"),
        ([{RATE: 0.1}], 3, "tune is 3; it must be a Tuning, or a field's name"),
        (
            grid.labelled("a", grid.values(RATE, (0.1, 0.2))),
            Tuning(RATE, reference="plain"),
            "tune.reference is 'plain'; it must be one of a, sgd, bulk_sgd, or a label",
        ),
    ],
)
def test_wrong_tunings_are_refused_before_anything_is_made(
    tmp_path, cells, tune, match
):
    with pytest.raises(ValueError, match=match):
        sweep.run_sweep(tiny(), cells, tmp_path / "new", tune=tune, say=quiet)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [({"by": "loss"}, "tune.by"), ({"rows": 0}, "tune.rows"), ({"widen": -1}, "widen")],
)
def test_wrong_rules_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        Tuning(RATE, **options)


def test_reference_is_a_label_an_arm_or_both():
    tune = Tuning(RATE, reference="plain: scales(1,2)")
    assert tune.is_reference("plain", "scales(1, 2)")
    assert not tune.is_reference("plain", "sgd")
    assert Tuning(RATE, reference="plain").is_reference("plain", "sgd")
    assert Tuning(RATE, reference="sgd").is_reference("other", "sgd")
