"""What the report of a run says happened, and how it writes numbers."""

import json
import math

import pytest
from written_runs import ENDS, KINDS, SCALES, SWITCH, write_run

from bulk_sgd.lab.report.narrative import happened, number, percent
from bulk_sgd.lab.report.results import PREFIX, read_run


def story(workdir, **kind):
    return " ".join(happened(read_run(write_run(workdir, **kind)))).replace("\xa0", " ")


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (0.49, "Dom-SGD stood still: it ended at 98 % of the loss at the switch"),
        (0.35, "Dom-SGD made some progress: the loss fell to 70 % of that"),
        (0.05, "Dom-SGD made progress: the loss fell to 10 % of that"),
        (0.75, "Dom-SGD lost ground: it raised the loss to 1.50 times that at"),
    ],
)
def test_words_follow_what_dom_sgd_did(tmp_path, end, told):
    assert told in story(tmp_path, ends={"sgd": 0.1, "dom_sgd": end})


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (0.101, "reached 0.101 against SGD's 0.100 (about level)"),
        (0.05, "reached 0.0500 against SGD's 0.100 (50 % lower)"),
        (0.3, "reached 0.300 against SGD's 0.100 (3.00 times as high)"),
    ],
)
def test_words_follow_how_bulk_sgd_compares(tmp_path, end, told):
    assert f"at step 200 {told}" in story(tmp_path, ends={"sgd": 0.1, "bulk_sgd": end})


@pytest.mark.parametrize(
    ("dom", "bulk", "told"),
    [
        (
            0.48,
            0.1,
            "Dom-SGD achieved 5 % and Bulk-SGD 100 %: here the flat directions",
        ),
        (
            0.1,
            0.48,
            "Dom-SGD achieved 100 % and Bulk-SGD 5 %: here the sharp directions",
        ),
        (0.1, 0.1, "here either part alone was nearly enough"),
        (0.3, 0.3, "Dom-SGD achieved 50 % and Bulk-SGD 50 %: here neither part alone"),
        (0.6, 0.1, "Dom-SGD achieved −25 %"),
    ],
)
def test_verdict_follows_the_shares_of_the_decrease(tmp_path, dom, bulk, told):
    ends = {"sgd": 0.1, "dom_sgd": dom, "bulk_sgd": bulk}
    assert told in story(tmp_path, ends=ends)


def test_no_verdict_when_sgd_itself_stands_still(tmp_path):
    ends = {"sgd": 0.495, "dom_sgd": 0.49, "bulk_sgd": 0.49}
    told = story(tmp_path, ends=ends)
    assert "SGD itself hardly lowered the loss" in told
    assert "achieved" not in told


def test_diverged_arm_is_told_and_never_compared(tmp_path):
    told = story(tmp_path, **KINDS["diverged"])
    assert (
        "Bulk-SGD diverged: its last finite training loss was 7.07e+14 at step 150"
        in told
    )
    assert "against SGD" not in told


def test_nothing_is_compared_with_a_diverged_arm(tmp_path):
    ends = {"sgd": 1e9, "dom_sgd": 0.49, "bulk_sgd": 0.1}
    told = story(tmp_path, ends=ends, diverged=["sgd"])
    assert "SGD diverged" in told
    assert "against SGD" not in told
    told = story(tmp_path, ends=ENDS | {"bulk_sgd": 1e9}, diverged=["bulk_sgd"])
    assert "Dom-SGD stood still" in told
    assert "achieved" not in told


def test_arms_are_compared_at_a_step_both_have(tmp_path):
    told = story(tmp_path, **KINDS["interrupted"])
    # Geometric half way from 0.5 to 0.49 and to 0.1.
    assert "at step 150 reached 0.495 against SGD's 0.224" in told
    assert "(interrupted at step 150)" in told
    assert "Nothing logged past the switch by Bulk-SGD." in told


def test_negative_losses_are_told_without_ratios(tmp_path):
    write_run(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"train_loss": ', '"train_loss": -'))
    told = " ".join(happened(read_run(tmp_path)))
    assert "Dom-SGD took the training loss to -0.490." in told
    assert "the loss at the switch" not in told


def test_an_arm_at_the_switch_has_not_stood_still(tmp_path):
    told = story(tmp_path, until=dict.fromkeys(ENDS, SWITCH))
    assert "Nothing logged past the switch by SGD, Dom-SGD, Bulk-SGD." in told
    assert "stood still" not in told


def test_run_without_arms_is_told(tmp_path):
    told = story(tmp_path, **KINDS["no_arms"])
    assert told.startswith(
        "The prefix took the training loss from 2.00 to 0.500 in 100 steps"
    )
    assert "no switch yet" in told
    assert "Dom-SGD" not in told


def test_energy_is_the_mean_square_not_the_square_of_the_mean(tmp_path):
    write_run(tmp_path, ends={"sgd": 0.1})
    lines = (tmp_path / "metrics.jsonl").read_text().replace(": 0.9,", ": 0.2,")
    (tmp_path / "metrics.jsonl").write_text(lines)
    # Half at 0.8, half at 0.2: their mean would square to 25 %.
    told = (
        "mean χ₃ of 0.500: 34 % of their squared length lay in 3 of 199,210 dimensions"
    )
    assert told in " ".join(happened(read_run(tmp_path))).replace("\xa0", " ")


def test_arms_that_never_had_a_subspace_lead_to_no_conclusion(tmp_path):
    write_run(tmp_path)
    file = tmp_path / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert "did the training" in " ".join(happened(read_run(tmp_path)))
    for each in rows:
        if each["arm"] != PREFIX:
            # The sharpness of the last row is known all the same.
            each |= {"eigenvalues": None, "kept": None, "failed_refreshes": 4}
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    record = json.loads((tmp_path / "run.json").read_text())
    for arm in record["arms"].values():
        arm["failed_refreshes"] = 4
    (tmp_path / "run.json").write_text(json.dumps(record))
    said = " ".join(happened(read_run(tmp_path)))
    assert "no subspace was ever found" in said
    assert "did the training" not in said


def test_a_diverged_prefix_is_named(tmp_path):
    prefix = {"status": "diverged", "last_step": 30}
    write_run(tmp_path, until=dict.fromkeys(SCALES, 0), switch=None, prefix=prefix)
    story = " ".join(happened(read_run(tmp_path)))
    assert "diverged there, so that there are no arms" in story


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0207, "0.0207"),
        (2.0, "2.00"),
        (170.0, "170"),
        (1234.5, "1,234"),
        (math.nan, "–"),
    ],
)
def test_numbers_read_well(value, text):
    assert number(value) == text


def test_small_shares_keep_two_digits():
    assert percent(0.0123).replace("\xa0", " ") == "1.2 %"
    assert percent(0.98).replace("\xa0", " ") == "98 %"


def edit_rows(tmp_path, change):
    metrics = tmp_path / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))
    return " ".join(happened(read_run(tmp_path)))


def test_an_empty_subspace_is_told_with_its_rows(tmp_path):
    write_run(tmp_path)
    assert "empty subspace" not in " ".join(happened(read_run(tmp_path)))

    def change(row):
        empty = row["arm"] == "bulk_sgd" and row["step"] <= SWITCH + 30
        return row | ({"kept": 0} if empty else {})

    told = edit_rows(tmp_path, change)
    assert "whole update is bulk: 3 of 10 (Bulk-SGD)." in told
