"""The experiment end to end, on a tiny task, against loops written by hand."""

import json

import jax
import numpy as np
import optax
import pytest
from hand_written import by_hand
from tiny_runs import (
    RANK,
    RATE,
    STEPS,
    SWITCH,
    compilations,
    on_subset,
    rows_of,
    strip_times,
    tiny,
)

import bulk_sgd
from bulk_sgd.lab.files import identities, metrics, record
from bulk_sgd.lab.training import train
from bulk_sgd.lab.training.experiment import Experiment
from bulk_sgd.lab.training.state import TrainState

MOMENTUM = 0.3
SOLVER = bulk_sgd.lanczos(1e-5, 200)
ARMS = "sgd", "bulk_sgd", "accelerated"


def with_momentum(**changes):
    """A tiny run whose optimizer has a state to hand on at the fork."""
    return tiny(optimizer__momentum=MOMENTUM, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train.train_and_evaluate(with_momentum(arms=ARMS), workdir)


def scaled(inner, *scales):
    given = {"switch": SWITCH, "solver": SOLVER}
    return optax.chain(inner, bulk_sgd.scale_by_subspace(RANK, *scales, **given))


@pytest.mark.parametrize(
    ("arm", "wrap"),
    [
        ("sgd", lambda inner: scaled(inner, 1.0, 1.0)),
        ("bulk_sgd", lambda inner: scaled(inner, 0.0, 1.0)),
    ],
)
def test_arms_equal_the_transform_in_a_loop_by_hand(finished, arm, wrap):
    # The same float32 operations in another program, and solves to 1e-5, whose
    # projectors differ by that over the gap to λ_{k+1}.
    rel = 1e-5 if arm == "sgd" else 1e-4
    method = wrap(optax.sgd(RATE, MOMENTUM))
    assert_equals_by_hand(rows_of(finished[0], arm), method, rel)


def assert_equals_by_hand(rows, method, rel):
    trace = by_hand(with_momentum(), method, STEPS)
    assert [row["step"] for row in rows] == [8, 13, 18, 20]
    for row in rows:
        assert row["train_loss"] == pytest.approx(trace[row["step"] - 1][0], rel=rel)
    chi = [alignment for _, alignment, _ in trace]
    assert rows[1]["alignment_update"] == pytest.approx(np.mean(chi[8:13]), rel=1e-3)
    assert rows[3]["alignment_update"] == pytest.approx(np.mean(chi[18:20]), rel=1e-3)


def test_guarded_arms_equal_the_transform_below_and_above_the_threshold(tmp_path):
    rises = {"optimizer__learning_rate": 0.18, "optimizer__warmup_steps": STEPS}
    config = with_momentum(arms=("accelerated",), **rises)
    train.train_and_evaluate(config, tmp_path)
    rows = rows_of(tmp_path, "accelerated")
    rate = optax.linear_schedule(0.0, 0.18, STEPS)
    given = {"rank": RANK, "switch": SWITCH, "solver": SOLVER}
    method = bulk_sgd.accelerated(optax.sgd(rate, MOMENTUM), rate, **given)
    assert_equals_by_hand(rows, method, 1e-4)
    shares, values = ([row[x] for row in rows] for x in ("scaled", "eigenvalues"))
    assert shares[1] > 0
    assert rate(12) * values[1][0] < 2 < 2 * rate(12) * values[1][-1]  # so b < 2
    assert shares[2:] == [0, 0]  # plain, as λ_1 is too large
    assert min(rate(17) * values[2][0], rate(19) * values[3][0]) > 2


def test_guarded_arms_tell_the_share_of_scaled_steps(finished):
    workdir, _ = finished
    shares = [row["scaled"] for row in rows_of(workdir, "accelerated")]
    assert shares[0] is None
    assert 0 < shares[1] < 1
    assert shares[2:] == [1, 1]
    assert {row["scaled"] for row in rows_of(workdir, "bulk_sgd")} == {None}


def test_methods_differ(finished):
    workdir, _ = finished
    last = [rows_of(workdir, arm)[-1]["train_loss"] for arm in ("sgd", "bulk_sgd")]
    assert abs(last[0] - last[1]) > 1e-3 * last[0]


def test_rows_can_leave_out_the_full_gradient_and_the_subspace_of_sgd(
    finished, tmp_path
):
    config = with_momentum()
    config.measures.full_gradient = config.measures.sgd_subspace = False
    train.train_and_evaluate(config, tmp_path)
    for arm in ("prefix", "sgd", "bulk_sgd"):
        rows, full = rows_of(tmp_path, arm), rows_of(finished[0], arm)
        assert {row["alignment_gradient"] for row in rows} == {None}
        # Other programs, which sum in another order.
        losses, expected = ([row["train_loss"] for row in x] for x in (rows, full))
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        if arm != "bulk_sgd":
            assert {row["alignment_update"] for row in rows} == {None}
            assert rows[-1]["matvecs"] == rows[-1]["seconds_curvature"] == 0
    assert rows[-1]["alignment_update"] is not None
    assert rows[-1]["matvecs"] == full[-1]["matvecs"] > 0


def test_rows_hold_what_was_measured(finished):
    workdir, _ = finished
    prefix = rows_of(workdir, "prefix")
    assert [row["step"] for row in prefix] == [0, 5, 8]
    assert all(row["eigenvalues"] is None for row in prefix)
    assert all(row["matvecs"] == 0 for row in prefix)
    start = Experiment(with_momentum())
    for name in ("train", "test"):
        loss = getattr(start.task, name)(start.params)
        assert prefix[0][f"{name}_loss"] == pytest.approx(float(loss))
    first, *later = rows_of(workdir, "bulk_sgd")
    assert first["train_loss"] == prefix[-1]["train_loss"]
    for row in later:
        assert row["eigenvalues"] == sorted(row["eigenvalues"], reverse=True)
        assert len(row["eigenvalues"]) == len(row["residuals"]) == RANK
        assert 0 <= row["alignment_gradient"] <= 1
        assert 0 <= row["test_accuracy"] <= 1
        assert 0 <= row["seconds_curvature"] <= row["seconds"]
    assert [row["refreshes"] for row in later] == [5, 10, 12]
    assert later[0]["matvecs"] >= 5 * RANK
    assert [row["sharpness"] is None for row in (first, *later)] == [True] * 3 + [False]
    last = later[-1]
    assert last["sharpness_ratio"] == pytest.approx(RATE * last["sharpness"])


def test_record_says_what_ran(finished):
    workdir, result = finished
    stored = json.loads((workdir / record.FILE).read_text())
    assert stored == result
    assert stored["status"] == "complete"
    assert stored["config"] == identities.plain(with_momentum(arms=ARMS))
    assert stored["switch"] == {"step": 8, "reason": "step 8"}
    assert stored["num_params"] == 784 * 6 + 6 + 6 * 10 + 10
    assert stored["versions"]["jax"] == jax.__version__
    arm = stored["arms"]["bulk_sgd"]
    assert (arm["status"], arm["last_step"]) == ("complete", STEPS)
    assert (arm["dominant_scale"], arm["bulk_scale"]) == (0.0, 1.0)
    guarded = [name for name, x in stored["arms"].items() if x["guarded"]]
    assert guarded == ["accelerated"]
    assert arm["matvecs"] == rows_of(workdir, "bulk_sgd")[-1]["matvecs"]


def test_same_config_same_numbers_and_other_seed_others(finished, tmp_path):
    workdir, _ = finished
    train.train_and_evaluate(with_momentum(arms=ARMS), tmp_path / "again")
    assert strip_times(rows_of(tmp_path / "again")) == strip_times(rows_of(workdir))
    train.train_and_evaluate(with_momentum(seed=1), tmp_path / "other")
    assert rows_of(tmp_path / "other")[0] != rows_of(workdir)[0]


def test_finished_run_is_left_alone(finished):
    workdir, result = finished
    before = (workdir / metrics.FILE).read_bytes()
    assert train.train_and_evaluate(with_momentum(), workdir) == result
    assert (workdir / metrics.FILE).read_bytes() == before


def test_another_config_is_refused_and_nothing_lost(finished):
    workdir, _ = finished
    before = (workdir / metrics.FILE).read_bytes()
    with pytest.raises(ValueError, match=r"another config.*config\.subspace\.rank"):
        train.train_and_evaluate(with_momentum(subspace__rank=2), workdir)
    assert (workdir / metrics.FILE).read_bytes() == before


def test_programs_compile_once_for_all_arms(tmp_path, caplog, shared_programs):
    shared_programs.clear()
    config = tiny(num_steps=10, arms=("sgd", "dom_sgd", "bulk_sgd"))
    with jax.log_compiles():
        train.train_and_evaluate(config, tmp_path)
    # One program with the projection and one without.
    assert compilations(caplog, "_train") == 2


@pytest.mark.slow
def test_stable_rates_are_between_those_that_a_loop_by_hand_can_bear(tmp_path):
    config = tiny(arms=("sgd",), stability__rounds=2, stability__num_steps=5)
    config.checkpoint.every = 0
    found = train.train_and_evaluate(config, tmp_path)["arms"]["sgd"]
    stable, unstable = found["stable_rate"], found["unstable_rate"]
    # Two halvings of the logarithm of an interval from 0.1 to 100 times the rate.
    assert unstable / stable == pytest.approx(1000**0.25)

    def loss_at(rate):
        rates = optax.constant_schedule(RATE), optax.constant_schedule(rate)
        method = optax.chain(
            bulk_sgd.scale_by_subspace(RANK, refresh_every=STEPS),
            optax.sgd(optax.join_schedules(rates, [SWITCH])),
        )
        return by_hand(tiny(), method, SWITCH + 5)[-1][0]

    bound = 2 * rows_of(tmp_path, "prefix")[-1]["train_loss"]
    assert loss_at(stable) <= bound
    assert not loss_at(unstable) <= bound


@pytest.mark.parametrize("data_name", ["subset", "batch"])
def test_curvature_data(finished, tmp_path, data_name):
    workdir, _ = finished
    config = with_momentum(subspace__data=data_name, subspace__subset_size=30)
    train.train_and_evaluate(config, tmp_path)
    other, full = rows_of(tmp_path, "bulk_sgd")[1], rows_of(workdir, "bulk_sgd")[1]
    assert abs(other["eigenvalues"][0] / full["eigenvalues"][0] - 1) > 1e-3


def test_the_whole_set_as_a_subset(finished, tmp_path):
    config = with_momentum(subspace__data="subset", subspace__subset_size=60)
    train.train_and_evaluate(config, tmp_path)
    same, full = (rows_of(at, "bulk_sgd")[1] for at in (tmp_path, finished[0]))
    assert same["eigenvalues"] == pytest.approx(full["eigenvalues"], rel=1e-4)


def test_seeds_draw_other_subsets():
    subsets = (Experiment(on_subset(seed=seed)).task.curvature for seed in (0, 1))
    assert not np.array_equal(*(subset.inputs for subset in subsets))


@pytest.mark.slow
def test_microbatches_change_nothing_but_rounding(finished, tmp_path):
    workdir, _ = finished
    train.train_and_evaluate(with_momentum(arms=ARMS, microbatch_size=25), tmp_path)
    for split, full in zip(rows_of(tmp_path), rows_of(workdir), strict=True):
        # Bulk-SGD sees two solves to 1e-5, whose projectors differ by that over the
        # gap to λ_{k+1}, of the order of 1e-2; the others see rounding alone.
        rel = 1e-3 if split["arm"] == "bulk_sgd" else 1e-5
        for name in ("train_loss", "test_loss", "test_accuracy"):
            assert split[name] == pytest.approx(full[name], rel=rel)


def test_training_loop_does_not_stop_at_a_step_that_is_not_due():
    # The program is asked for 3 of 5 steps and must not take the rest.
    config = tiny()
    experiment = Experiment(config)
    state, trace = experiment.programs.train(
        experiment.start(),
        experiment.task,
        experiment.indices(0),
        3,
        projected=False,
    )
    assert int(state.step) == int(trace.num_steps) == 3
    assert np.all(np.asarray(trace.batch_losses[:3]) > 0)
    assert np.all(np.asarray(trace.batch_losses[3:]) == 0)
    assert isinstance(state, TrainState)
