"""What the report of a run says happened, and how it writes numbers."""

import json
import math

import pytest
from written_runs import ENDS, KINDS, SCALES, SWITCH, edit_rows, write_run

from bulk_sgd.lab.report import run_report
from bulk_sgd.lab.report.formatting import exact, number, percent
from bulk_sgd.lab.report.narrative import happened
from bulk_sgd.lab.report.results import PREFIX, read_run


def story(workdir):
    return " ".join(happened(read_run(workdir))).replace("\xa0", " ")


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (0.49, "0.490 at step 200, 0.980 times the loss at the fork, 4.90 times SGD's"),
        (
            0.05,
            "0.0500 at step 200, 0.100 times the loss at the fork, 0.500 times SGD's",
        ),
        (0.75, "0.750 at step 200, 1.50 times the loss at the fork, 7.50 times SGD's"),
    ],
)
def test_an_arm_is_compared_with_the_fork_and_with_sgd(tmp_path, end, text):
    write_run(tmp_path, ends={"sgd": 0.1, "dom_sgd": end})
    sentence = f"Dom-SGD (complete) took the training loss to {text} 0.100 at step 200."
    assert sentence in story(tmp_path)


@pytest.mark.parametrize(
    ("dom", "bulk", "text"),
    [
        (0.48, 0.1, "achieved 5.00 % and Bulk-SGD 100 %: the flat directions did"),
        (0.1, 0.48, "achieved 100 % and Bulk-SGD 5.00 %: the sharp directions did"),
        (0.1, 0.1, "either part alone was nearly enough"),
        (0.3, 0.3, "achieved 50.0 % and Bulk-SGD 50.0 %: neither part alone"),
        (0.6, 0.1, "Dom-SGD achieved −25.0 %"),
    ],
)
def test_verdict_follows_the_shares_of_the_decrease(tmp_path, dom, bulk, text):
    write_run(tmp_path, ends={"sgd": 0.1, "dom_sgd": dom, "bulk_sgd": bulk})
    assert text in story(tmp_path)


def test_no_verdict_when_sgd_itself_stands_still(tmp_path):
    write_run(tmp_path, ends={"sgd": 0.495, "dom_sgd": 0.49, "bulk_sgd": 0.49})
    assert "SGD itself hardly lowered the loss" in story(tmp_path)
    assert "achieved" not in story(tmp_path)


def test_a_diverged_arm_is_never_compared(tmp_path):
    text = story(write_run(tmp_path, **KINDS["diverged"]))
    assert (
        "Bulk-SGD (diverged) took the training loss to 7.07e14 at step 150, 1.41e15 "
        "times the loss at the fork." in text
    )
    assert "times SGD's" not in text


def test_nothing_is_compared_with_a_diverged_arm(tmp_path):
    ends = {"sgd": 1e9, "dom_sgd": 0.49, "bulk_sgd": 0.1}
    text = story(write_run(tmp_path, ends=ends, diverged=["sgd"]))
    assert "SGD (diverged)" in text
    assert "times SGD's" not in text
    write_run(tmp_path, ends=ENDS | {"bulk_sgd": 1e9}, diverged=["bulk_sgd"])
    assert "Dom-SGD (complete) took the training loss to 0.490" in story(tmp_path)
    assert "achieved" not in story(tmp_path)


def test_arms_are_compared_at_a_step_both_have(tmp_path):
    text = story(write_run(tmp_path, **KINDS["interrupted"]))
    assert "Dom-SGD (interrupted) took" in text
    # Geometric half way from 0.5 to 0.49 and to 0.1.
    assert "2.21 times SGD's 0.224 at step 150." in text
    assert "Nothing logged after the fork: Bulk-SGD." in text


def test_negative_losses_have_no_ratios(tmp_path):
    write_run(tmp_path)
    edit_rows(tmp_path, lambda row: row | {"train_loss": -row["train_loss"]})
    assert "Dom-SGD (complete) took the training loss to −0.490 at" in story(tmp_path)
    assert " times " not in story(tmp_path)


def test_an_arm_at_the_fork_has_done_nothing(tmp_path):
    text = story(write_run(tmp_path, until=dict.fromkeys(ENDS, SWITCH)))
    assert "Nothing logged after the fork: SGD, Dom-SGD, Bulk-SGD." in text
    assert "took the training loss to" not in text


def test_run_without_arms(tmp_path):
    text = story(write_run(tmp_path, **KINDS["no_arms"]))
    assert text == (
        "The prefix ran for 100 steps and took the training loss from 2.00 to 0.500; "
        "it has not forked, so there are no arms."
    )


def test_the_prefix_names_its_fork(tmp_path):
    text = story(write_run(tmp_path))
    assert "The arms forked off at step 100 (alignment 0.953 > 0.95)." in text


def test_energy_is_the_mean_square_not_the_square_of_the_mean(tmp_path):
    write_run(tmp_path, ends={"sgd": 0.1})
    half = lambda row: {"alignment_update": 0.2 if row["step"] % 20 else 0.8}
    edit_rows(tmp_path, lambda row: row | half(row))
    # Half at 0.8, half at 0.2: their mean would square to 25 %.
    text = "mean χ₃ of 0.500: 34.0 % of their squared length lay in 3 of 199,210 dim"
    assert text in story(tmp_path)


def test_arms_that_never_had_a_subspace_lead_to_no_conclusion(tmp_path):
    write_run(tmp_path)
    assert "did the training" in story(tmp_path)
    # The sharpness of the last row is known all the same.
    lost = {"eigenvalues": None, "kept": None, "failed_refreshes": 4}
    edit_rows(tmp_path, lambda row: row | (lost if row["arm"] != PREFIX else {}))
    record = json.loads((tmp_path / "run.json").read_text())
    for arm in record["arms"].values():
        arm["failed_refreshes"] = 4
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert "no subspace was ever found: SGD, Dom-SGD, Bulk-SGD." in story(tmp_path)
    assert "did the training" not in story(tmp_path)


def test_a_diverged_prefix_is_named(tmp_path):
    prefix = {"status": "diverged", "last_step": 30}
    write_run(tmp_path, until=dict.fromkeys(SCALES, 0), switch=None, prefix=prefix)
    assert "it diverged, so there are no arms" in story(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0207, "0.0207"),
        (2.0, "2.00"),
        (-0.49, "−0.490"),
        (170.0, "170"),
        (1234.5, "1,234"),
        (1.5e7, "1.50e7"),
        (-2e-10, "−2.00e-10"),
        (math.nan, "–"),
    ],
)
def test_numbers_read_well(value, text):
    assert number(value) == text


def test_chosen_numbers_keep_their_digits():
    values = 0.05, 1e-5, 1000, 0.0, -0.5, 2e9, 199_210
    shown = ["0.05", "1e-5", "1,000", "0", "−0.5", "2e9", "199,210"]
    assert [exact(value) for value in values] == shown


def test_captions_describe_what_is_drawn(tmp_path):
    captions = lambda: " ".join(run_report._captions(read_run(tmp_path)).values())
    write_run(tmp_path)
    assert "Thin lines" not in captions()  # each arm has 11 rows
    assert "the prefix in grey" in captions()
    assert "An × marks" not in captions()
    none = lambda row: {"eigenvalues": None} if row["arm"] == PREFIX else {}
    edit_rows(tmp_path, lambda row: row | none(row))
    assert "the prefix in grey" not in captions()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    more = [json.dumps(last | {"step": last["step"] + i}) for i in range(50)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, *more, ""]))
    assert "Thin lines" in captions()
    write_run(tmp_path, **KINDS["diverged"])
    assert "An × marks" in captions()


def test_without_an_accuracy_the_test_loss_is_shown(tmp_path):
    write_run(tmp_path)
    edit_rows(tmp_path, lambda row: row | {"test_accuracy": None, "test_loss": 0.625})
    run = read_run(tmp_path)
    text = run_report._table(run)
    assert '<th scope="col">test loss</th>' in text
    assert "<td>0.625</td>" in text
    assert "on a log scale, and test loss" in run_report._captions(run)["loss"]


def test_shares_have_as_many_digits_as_numbers():
    shares = [percent(0.0123), percent(0.98), percent(0.9876, 4), percent(math.nan)]
    assert shares == ["1.23\xa0%", "98.0\xa0%", "98.76\xa0%", "–"]


def test_an_empty_subspace_is_counted_in_rows(tmp_path):
    write_run(tmp_path)
    assert "empty subspace" not in story(tmp_path)

    def change(row):
        empty = row["arm"] == "bulk_sgd" and row["step"] <= SWITCH + 30
        return row | ({"kept": 0} if empty else {})

    edit_rows(tmp_path, change)
    assert "whole update is bulk: 3 of 10 (Bulk-SGD)." in story(tmp_path)
