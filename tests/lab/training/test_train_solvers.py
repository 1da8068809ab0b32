"""What the rows of a run say about its solver, and about sharpness."""

import re

import numpy as np
import pytest
from helpers import dense, largest
from tiny_runs import RANK, RATE, STEPS, SWITCH, on_subset, rows_of, tiny

import bulk_sgd
from bulk_sgd.lab.report.write import write_report
from bulk_sgd.lab.training import evaluation, measures, train, trouble
from bulk_sgd.lab.training.experiment import Experiment


@pytest.mark.parametrize(
    "source", ["full", pytest.param("batch", marks=pytest.mark.slow)]
)
def test_sharpness_is_of_the_whole_loss_and_where_the_parameters_are(source):
    config = tiny(subspace__data=source, subspace__refresh_every=5)
    experiment = Experiment(config)
    programs, task = experiment.programs, experiment.task
    scalars = experiment.scalars(experiment.arms[0])
    state, _ = programs.train(
        experiment.start(), task, experiment.feed(0), 5, scalars, projected=True
    )
    matrix = dense(bulk_sgd.hessian(task.train, state.params), state.params)
    (exact,) = largest(matrix)
    # Solved to residuals of 1e-2, which bound the error of the eigenvalue.
    assert float(programs.sharpness(state, task)) == pytest.approx(exact, rel=1e-2)
    # The eigenvalue in the state is four steps old, or of one batch.
    stale = float(state.projection.subspace.eigenvalues[0])
    assert stale != pytest.approx(exact, rel=2e-2)


@pytest.mark.parametrize(
    ("asked", "steps"),
    [
        ({"measures__sharpness_every": 10}, {"prefix": [0], "sgd": [20]}),
        ({"measures__last_sharpness": False}, {"prefix": [], "sgd": []}),
        (
            {"measures__last_sharpness": False, "measures__sharpness_every": 10},
            {"prefix": [0], "sgd": [20]},
        ),
    ],
)
def test_sharpness_in_every_row_that_asks_for_it(asked, steps, tmp_path):
    train.train_and_evaluate(tiny(**asked), tmp_path)
    known = {
        arm: [r["step"] for r in rows_of(tmp_path, arm) if r["sharpness"] is not None]
        for arm in ("prefix", "sgd")
    }
    assert known == steps


@pytest.mark.slow
def test_sharpness_is_at_the_rate_of_the_last_step(tmp_path):
    config = tiny(arms=("sgd",), optimizer__momentum=0.5)
    schedule = {"schedule": "step", "boundaries": (13,), "decay": 0.1}
    config.optimizer.update(schedule)
    result = train.train_and_evaluate(config, tmp_path)
    assert result["stability_threshold"] == 3.0
    _, *later = rows_of(tmp_path, "sgd")
    assert [row["step"] for row in later] == [13, 18, 20]
    for row, rate in zip(later, (RATE, 0.1 * RATE, 0.1 * RATE)):
        assert row["learning_rate"] == pytest.approx(rate)
    last = later[-1]
    assert last["sharpness_ratio"] == pytest.approx(0.1 * RATE * last["sharpness"])


def test_failed_refreshes_are_counted_and_the_update_stays(tmp_path):
    # Tolerance 0 is below rounding: no solve converges, and the empty subspace stays.
    config = tiny(subspace__tol=0.0, arms=("bulk_sgd", "sgd"))
    result = train.train_and_evaluate(config, tmp_path)
    bulk = rows_of(tmp_path, "bulk_sgd")[-1]
    assert bulk["failed_refreshes"] == bulk["refreshes"] == STEPS - SWITCH
    assert result["arms"]["bulk_sgd"]["failed_refreshes"] == STEPS - SWITCH
    assert bulk["eigenvalues"] is None
    assert bulk["train_loss"] == rows_of(tmp_path, "sgd")[-1]["train_loss"]


def test_streaming_takes_one_matvec_a_step(tmp_path):
    config = tiny(
        subspace__solver="streaming", subspace__data="batch", arms=("bulk_sgd",)
    )
    config.switch.alignment = 1.0  # never reached, but the prefix keeps a subspace
    result = train.train_and_evaluate(config, tmp_path)
    assert result["prefix"]["matvecs"] == SWITCH
    assert result["arms"]["bulk_sgd"]["matvecs"] == STEPS - SWITCH
    row = rows_of(tmp_path, "bulk_sgd")[-1]
    assert row["failed_refreshes"] == 0
    assert row["eigenvalues"] == sorted(row["eigenvalues"], reverse=True)


@pytest.mark.slow
def test_factors_say_what_their_cut_takes(tmp_path):
    config = tiny(
        subspace__solver="streaming",
        subspace__data="batch",
        subspace__batch_fraction=0.4,
        subspace__factors=1,
        measures__step_every=5,
        arms=("bulk_sgd",),
    )
    train.train_and_evaluate(config, tmp_path)
    row = rows_of(tmp_path, "bulk_sgd")[-1]
    assert row["failed_refreshes"] == 0
    assert row["kept"] == RANK
    assert 0 < row["energy_lost"] < 1
    assert 0 < row["displacement_subspace"] < 1
    assert len(row["localization"]) == RANK
    assert rows_of(tmp_path, "prefix")[-1]["energy_lost"] is None
    page = write_report(tmp_path).read_text("utf-8")
    assert "streaming, factors 1" in page
    assert "Hessian of 40.0\N{NO-BREAK SPACE}% of the current mini-batch" in page
    assert "Energy outside of the frames" in page


@pytest.mark.slow
def test_products_are_of_the_first_examples_of_a_batch():
    config = tiny(subspace__data="batch", subspace__batch_fraction=0.4)
    experiment = Experiment(config)
    programs, task, feed = experiment.programs, experiment.task, experiment.feed(0)
    arm = experiment.scalars(experiment.arms[0])._replace(learning_rate=0.0)
    start = experiment.start()
    part = task.train.take(feed[0][:4])
    expected = dense(bulk_sgd.hessian(part, start.params), start.params)
    state, _ = programs.train(start, task, feed, 1, arm, projected=True)
    found = state.projection.subspace
    # Solved to residuals of 1e-5 of the largest.
    values = largest(expected, RANK)
    np.testing.assert_allclose(found.eigenvalues, values, atol=1e-4 * values[0])


@pytest.mark.parametrize("solver", ["update_pca", "streaming_pca"])
def test_hessian_free_runs_claim_no_eigenvalues(tmp_path, solver):
    config = tiny(subspace__solver=solver, arms=("bulk_sgd",))
    train.train_and_evaluate(config, tmp_path)
    row = rows_of(tmp_path, "bulk_sgd")[-1]
    assert row["matvecs"] == row["failed_refreshes"] == 0
    assert row["refreshes"] == STEPS - SWITCH
    assert row["kept"] == RANK
    assert 0 < row["alignment_update"] < 1
    assert row["eigenvalues"] is row["residuals"] is None
    assert row["sharpness"] > 0  # solved for by itself


def assert_claims_nothing(row):
    """Refreshes work, but their vectors are no eigenvectors of the Hessian."""
    assert row["refreshes"] > row["failed_refreshes"]
    assert row["kept"] > 0
    assert row["eigenvalues"] is row["residuals"] is None
    assert row["sharpness"] > 0


@pytest.mark.slow
def test_eigenvalues_of_something_else_are_not_claimed(tmp_path):
    config = tiny(arms=("bulk_sgd",), subspace__solver="krylov_filter")
    train.train_and_evaluate(config, tmp_path)
    assert_claims_nothing(rows_of(tmp_path, "bulk_sgd")[-1])


@pytest.mark.parametrize(
    ("solver", "fields"),
    [
        ("lanczos", ["max_matvecs (200)", "tol (1e-05)"]),
        ("power", ["max_matvecs (200)"]),
        ("krylov_filter", ["max_matvecs (200)"]),
        ("streaming", []),
    ],
)
def test_without_a_subspace_the_fields_to_raise_are_named(solver, fields):
    space = tiny(subspace__solver=solver).subspace
    row = {"eigenvalues": None, "failed_refreshes": 3}
    assert not any(trouble.of(row | {"kept": 2}, space))  # it claims no eigenvalues
    advice = " or ".join(f"config.subspace.{field}" for field in fields)
    end = f"yet; raise {advice}." if fields else "yet."
    _, sentence = trouble.of(row | {"kept": None}, space)
    assert sentence == f"no refresh has converged, so there is no subspace {end}"


@pytest.mark.slow
def test_kept_counts_the_vectors_in_use(tmp_path, capsys):
    config = tiny(subspace__keep="eigenvalue", subspace__threshold=1e3)
    config.progress = True
    train.train_and_evaluate(config, tmp_path)
    told = re.findall(
        r"bulk_sgd: the subspace is empty at step .*", capsys.readouterr().err
    )
    assert len(told) == 1  # however many rows
    assert "config.subspace.threshold 1000)" in told[0]
    row = rows_of(tmp_path, "bulk_sgd")[-1]
    assert row["kept"] == 0
    assert row["alignment_gradient"] == 0
    assert rows_of(tmp_path, "prefix")[-1]["kept"] is None


@pytest.mark.slow
def test_measures_compare_blocks_and_a_subset_with_what_they_stand_for(tmp_path):
    config = tiny(
        subspace__blocks="layer",
        subspace__data="subset",
        subspace__subset_size=30,
        measures__every=5,
        measures__num_probes=2,
        arms=("bulk_sgd",),
    )
    train.train_and_evaluate(config, tmp_path)
    row = rows_of(tmp_path, "bulk_sgd")[-1]
    assert row["kept"] == RANK
    assert_claims_nothing(row)
    # Two of the first layer and one of the last are not the three of the network.
    assert 0.05 < row["exact_overlap"] < 0.999
    assert 0 < row["exact_alignment"] <= 1
    assert 0 < row["subsampling_overlap"] < 1
    assert 0 < row["subsampling_projection"] < 1
    assert 0 < row["subsampling_eigenvalues"] < row["sharpness"]


@pytest.mark.slow
def test_a_solved_subspace_is_the_exact_one():
    config = tiny(measures__every=5)
    experiment = Experiment(config)
    arm = experiment.scalars(experiment.arms[0])
    # A step that does not move: the subspace is that of these parameters.
    arm = arm._replace(learning_rate=0.0)
    start, task, feed = experiment.start(), experiment.task, experiment.feed(0)
    state, _ = experiment.programs.train(start, task, feed, 1, arm, projected=True)
    facts = evaluation.fidelity(config, experiment.layout, state, task)
    # Solves to 1e-5 and 1e-4 of λ_1, over the gap to λ_4, squared.
    assert float(facts["exact_overlap"]) == pytest.approx(1, abs=1e-4)
    assert set(facts) == {"exact_overlap", "exact_alignment"}
    assert np.isfinite(float(facts["exact_alignment"]))


@pytest.mark.slow
def test_rows_say_what_the_next_step_does(tmp_path):
    changes = {"optimizer__momentum": 0.5, "subspace__refresh_every": 2}
    config = on_subset(measures__every=10, measures__step_every=5, **changes)
    config.measures.num_probes, config.switch.step = 2, 5
    train.train_and_evaluate(config, tmp_path)
    assert all("displacement" not in row for row in rows_of(tmp_path, "prefix"))
    for arm in config.arms:
        start, first, *rows = rows_of(tmp_path, arm)
        assert "step/measured_whole" not in start  # there is no subspace yet
        assert first["displacement_subspace"] is None  # nor one before the first rows
        for row in rows:
            assert 0 < row["displacement_subspace"] < 1
            assert len(row["displacement"]) == RANK
        for row in [first, *rows]:
            whole = sum(
                row[f"step/predicted_{x}"] for x in ("dominant", "bulk", "cross")
            )
            # What a second order leaves of a small step.
            assert row["step/measured_whole"] == pytest.approx(whole, rel=0.3)
            scales = row["step/critical_scale"] * row["step/critical_sharpness"]
            assert scales == pytest.approx(2 / RATE)
            assert min(row["localization"]) > 0.3
            assert 0 < row["step/sharpness_update"] < 1.1 * row["eigenvalues"][0]
            # With momentum the two directions differ.
            assert row["batch_sharpness"] != row["batch_sharpness_update"]
        profile = rows[-1]["rank_profile"]
        assert len(profile) == len(measures.RANKS)
        assert 0.5 < profile[0] < profile[1] < profile[3] <= 1 + 1e-5
        assert rows[-1]["rank_profile/dense_0/kernel"][3] == pytest.approx(1)
        assert "rank_profile/dense_0/bias" not in rows[-1]
