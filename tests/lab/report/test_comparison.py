"""Reports that lay runs and sweeps side by side."""

import json
import math

import pytest
from written_runs import write_run
from written_studies import write_axis, write_cell, write_tuned

from bulk_sgd.lab.report import comparison
from bulk_sgd.lab.report.write import write_report


@pytest.fixture
def folders(tmp_path):
    """Two runs that differ in a field and in the seed, and a sweep of two settings."""
    for name, rank, end in (("one", 3, 0.1), ("two", 5, 0.2)):
        config = {"seed": rank, "subspace": {"rank": rank, "solver": "lanczos"}}
        config |= {"wandb": name == "one"}
        write_run(tmp_path / name, ends={"sgd": end, "bulk_sgd": end}, config=config)
    write_axis(tmp_path / "sweep", [{"subspace.rank": 1}, {"subspace.rank": 2}])
    for index in range(2):
        write_cell(tmp_path / "sweep", index, energies=False)
    return [tmp_path / name for name in ("one", "two", "sweep")]


def test_runs_and_sweeps_under_labels(folders):
    axis = comparison.read_comparison(folders, ["a", "b", "c"])
    assert list(axis.groups) == ["a", "b", "c: 1", "c: 2"]
    assert axis.spread("b", "sgd", "loss_ratio").mean == pytest.approx(0.4)
    assert list(comparison.read_comparison(folders).groups)[:2] == ["one", "two"]


def test_workdirs_of_one_label_are_seeds(folders):
    axis = comparison.read_comparison(folders[:2], ["same", "same"])
    assert list(axis.groups) == ["same"]
    spread = axis.spread("same", "sgd", "loss_ratio")
    assert (spread.mean, spread.count) == (pytest.approx(0.3), 2)


def test_folders_of_one_name_are_told_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name / "run")
    axis = comparison.read_comparison([tmp_path / x / "run" for x in "ab"])
    assert list(axis.groups) == ["a/run", "b/run"]


def test_a_tuned_sweep_enters_with_its_best_values(tmp_path):
    settings = {"plain": {0.1: (0.5,), 0.2: (0.25,)}}
    write_tuned(tmp_path / "tuned", settings, {"field": "optimizer.learning_rate"})
    axis = comparison.read_comparison([tmp_path / "tuned"], ["t"])
    assert list(axis.groups) == ["t"]
    assert axis.spread("t", "sgd", "loss_ratio").mean == pytest.approx(0.25 / 4)


def test_sweeps_of_a_study_are_told_apart(tmp_path):
    for name in ("one", "two"):
        write_axis(tmp_path / "study" / name, [{"seed": 0}, {"seed": 1}])
        write_cell(tmp_path / "study" / name, 0, energies=False)
    axis = comparison.read_comparison([tmp_path / "study"], ["s"])
    assert {name: len(cells) for name, cells in axis.groups.items()} == {
        "s: one": 2,
        "s: two": 2,
    }


def test_a_tuned_sweep_without_a_best_value_is_on_the_page(folders, tmp_path):
    settings = {"plain": {0.1: (math.nan,), 0.2: (math.nan,)}}
    write_tuned(tmp_path / "tuned", settings, {"field": "optimizer.learning_rate"})
    page = write_report(folders[0], tmp_path / "tuned", labels=["a", "t"])
    told = "({&quot;label&quot;: &quot;t&quot;, &quot;seed&quot;: 1}) is without a best"
    assert told in page.read_text()


def test_every_value_of_a_label_is_shown(folders):
    axis = comparison.read_comparison([*folders[:2], folders[0]], ["x", "x", "y"])
    row = '<th scope="row">subspace.rank</th><td>3, 5</td><td>3</td>'
    assert row in comparison.differences(axis)
    axis = comparison.read_comparison(folders[:2], ["x", "x"])
    assert "<td>3, 5</td>" in comparison.differences(axis)


def test_page_says_what_differs(folders, tmp_path):
    page = write_report(*folders, labels=["a", "b", "c"])
    assert page == tmp_path / "one" / "comparison" / "index.html"
    text = page.read_text()
    assert "<h1>a, b, c: 1, c: 2</h1>" in text
    row = '<th scope="row">subspace.rank</th><td>3</td><td>5</td><td>–</td>'
    assert row in text
    assert '<th scope="row">seed</th>' not in text
    assert '<th scope="row">wandb</th>' not in text
    assert "Claims" not in text
    for name in ("curves", "settings"):
        assert page.with_name(f"comparison-{name}.png").stat().st_size > 10_000
    assert len(json.loads(page.with_name("tables.json").read_text())["axes"]) == 1
    out = write_report(folders[0], folders[1], out=tmp_path / "new" / "page")
    assert out == tmp_path / "new" / "page" / "index.html"


def test_labels_must_fit(folders):
    with pytest.raises(ValueError, match="labels is 'a'; it must have one label for"):
        write_report(*folders, labels=["a"])
    with pytest.raises(FileNotFoundError, match=r"No run\.json in"):
        write_report(folders[0], folders[0] / "nowhere")
