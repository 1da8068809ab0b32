"""What the rows of a run say about its solver."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_train import RANK, STEPS, SWITCH, rows_of, tiny

from bulk_sgd import experiment as experiment_lib
from bulk_sgd import steps, train
from bulk_sgd.trainer import Trainer


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


@pytest.mark.parametrize("changes", [{"solver": "krylov_filter"}, {"blocks": "layer"}])
def test_eigenvalues_of_something_else_are_not_claimed(tmp_path, changes):
    fields = {f"subspace__{name}": value for name, value in changes.items()}
    train.train_and_evaluate(tiny(arms=("bulk_sgd",), **fields), tmp_path)
    row = rows_of(tmp_path, "bulk_sgd")[-1]
    assert row["refreshes"] > row["failed_refreshes"]
    assert row["kept"] > 0
    assert row["eigenvalues"] is row["residuals"] is None
    assert row["sharpness"] > 0


@pytest.mark.parametrize(
    ("solver", "fields"),
    [
        ("lanczos", ["max_matvecs (200)", "tol (1e-05)"]),
        ("power", ["max_matvecs (200)"]),
        ("krylov_filter", ["max_matvecs (200)"]),
        ("streaming", []),
    ],
)
def test_without_a_subspace_the_fields_to_raise_are_named_once(solver, fields):
    job = SimpleNamespace(
        name="bulk_sgd",
        entry={"failed_refreshes": 3, "status": "running"},
        experiment=SimpleNamespace(config=tiny(subspace__solver=solver)),
    )
    said = []
    progress = SimpleNamespace(advance=lambda *_, **__: None, say=said.append)
    trainer = Trainer(None, progress)
    row = {"train_loss": 1.0, "eigenvalues": None, "kept": 2}
    trainer._report(job, 5, row)  # one that claims no eigenvalues
    assert not said
    for _ in range(2):
        trainer._report(job, 5, row | {"kept": None})
    advice = " or ".join(f"config.subspace.{field}" for field in fields)
    end = f"yet; raise {advice}." if fields else "yet."
    assert said == [
        f"bulk_sgd: no refresh has converged, so there is no subspace {end}"
    ]


def test_kept_counts_the_vectors_in_use(tmp_path):
    config = tiny(subspace__keep="eigenvalue", subspace__threshold=1e3)
    train.train_and_evaluate(config, tmp_path)
    row = rows_of(tmp_path, "bulk_sgd")[-1]
    assert row["kept"] == 0
    assert row["alignment_gradient"] == 0
    assert rows_of(tmp_path, "prefix")[-1]["kept"] is None


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
    # Two of the first layer and one of the last are not the three of the network.
    assert 0.05 < row["exact_overlap"] < 0.999
    assert 0 < row["exact_alignment"] <= 1
    assert 0 < row["subsampling_overlap"] < 1
    assert 0 < row["subsampling_projection"] < 1
    assert 0 < row["subsampling_eigenvalues"] < row["sharpness"]


def test_a_solved_subspace_is_the_exact_one():
    config = tiny(measures__every=5)
    experiment = experiment_lib.Experiment(config)
    programs = steps.Programs(config)
    state = programs.init(experiment.params)
    arm = experiment.scalars(experiment.arms[0])
    indices = experiment.indices(0)
    # A step that does not move: the subspace is that of these parameters.
    arm = arm._replace(learning_rate=0.0)
    state, _ = programs.train(state, experiment.task, indices, 1, arm, projected=True)
    facts = programs._fidelity(state, experiment.task, experiment.task.train)
    # Solves to 1e-5 and 1e-4 of λ_1, over the gap to λ_4, squared.
    assert float(facts["exact_overlap"]) == pytest.approx(1, abs=1e-4)
    assert set(facts) == {"exact_overlap", "exact_alignment"}
    assert np.isfinite(float(facts["exact_alignment"]))
