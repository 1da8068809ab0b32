"""Reports of studies: of one that has just begun, and of real runs."""

import json
import re
import shutil

import pytest
from written_runs import edit_rows
from written_studies import LOSSES, SCALES, edit_info, write_axis, write_cell

from bulk_sgd.lab.report import (
    study,
    study_report,
)
from bulk_sgd.lab.report.formatting import number
from bulk_sgd.lab.report.page import text as page_text
from bulk_sgd.lab.report.study_tables import plus_minus
from bulk_sgd.lab.sweep import grid, sweep


@pytest.mark.parametrize("kind", ["settings", "plane", "families", "training"])
def test_report_of_a_study_that_has_just_begun(tmp_path, monkeypatch, kind):
    points = {f"scales({a},{b})": (a, b) for a in (0.5, 2.0, 3.0) for b in (0.5, 2.0)}
    for name in points:
        monkeypatch.setitem(SCALES, name, points[name])
        monkeypatch.setitem(LOSSES, name, LOSSES["bulk_sgd"])
    arms = {
        "plane": ("sgd", *points),
        "families": ("sgd", "bulk_sgd", "bulk_path(0.5)"),
    }.get(kind, ("sgd", "bulk_sgd"))
    cells = [{"seed": 0}, {"seed": 1}]
    if kind == "settings":
        cells = grid.values("subspace.rank", (1, 5))
    write_axis(tmp_path, cells)
    page = study_report.write_report(tmp_path)
    assert "Cells: 2, 2 pending." in page.read_text()
    assert "No cell has begun." in page.read_text()
    image = page.with_name(f"{tmp_path.name}-{kind}.png")
    write_cell(tmp_path, 0, arms, statuses=dict.fromkeys(arms, "running"))
    study_report.write_report(tmp_path)
    assert image.exists() == (kind == "training")  # the others show how arms ended
    assert "0 of 0" in page.read_text()
    write_cell(tmp_path, 1, arms)
    for index in range(2):
        edit_info(tmp_path, index, doubts=["The accuracy means nothing."])
    study_report.write_report(tmp_path)
    assert image.exists()
    assert "0 of 1" in page.read_text()
    assert page.read_text().count("The accuracy means nothing.") == 1


@pytest.fixture(scope="module")
def studied(run, tmp_path_factory):
    """An axis of a real run, and one with a failed cell."""
    root = tmp_path_factory.mktemp("study")
    write_axis(root / "seeds", [{"seed": 0}])
    real = sweep.cell_folder(root / "seeds", 0)
    real.mkdir(parents=True)
    for file in ("run.json", "metrics.jsonl"):
        shutil.copy(run / file, real)
    write_axis(root / "batch", [{"batch_size": size} for size in (5, 10, 20)])
    for index in range(2):
        write_cell(root / "batch", index, energies=False)
    failed = sweep.cell_folder(root / "batch", 2)
    failed.mkdir(parents=True)
    (failed / "error.txt").write_text("out of memory")
    return root


@pytest.mark.slow
def test_page_of_a_real_run_and_a_failed_cell(studied):
    path = study_report.write_report(studied)
    text = path.read_text()
    images = {file.name for file in path.parent.glob("*.png")}
    names = "seeds-training", "seeds-energies", "batch-curves", "batch-settings"
    assert images == {f"{name}.png" for name in names}
    assert text.count("data:image/png;base64,") == 4
    assert "batch: cell 2 ({&quot;batch_size&quot;: 20}) is failed." in text
    assert "stand side by side" in text  # of the five arms at each batch size
    tables = json.loads((path.parent / "tables.json").read_text())
    outcome = tables["axes"]["seeds"][0]["arms"]["bulk_sgd"]
    run = study.read_study(studied)[1].cells[0].run
    ratio = run.summary("bulk_sgd").train_loss / run.fork_loss
    assert outcome["loss_ratio"] == pytest.approx(ratio)
    assert 0 < outcome["descent_ratio"] < 1
    assert tables["axes"]["batch"][0]["arms"]["bulk_sgd"]["stable_rate"] == 0.1
    markdown = (path.parent / "claims.md").read_text()
    assert len(re.findall(r"^\|", markdown, re.M)) == 2 + len(tables["claims"])
    # Sum rule, shares and forms, from the rows of the real run.
    assert "H = G + F" in text
    for operator in ("hessian", "gauss_newton", "functional_hessian"):
        share = run.series("sgd", f"{operator}/frobenius_share")[-1]
        assert f"<td>{number(share)}</td>" in text
        forms = run.rows["sgd"][-1][f"{operator}/rayleigh"]
        assert "".join(f"<td>{number(form)}</td>" for form in forms) in text
    assert page_text(run.info["command"]) in text


def test_report_of_a_single_sweep_and_again_the_same(studied):
    assert study.is_study(studied / "batch")
    assert not study.is_study(sweep.cell_folder(studied / "seeds", 0))
    first = study_report.write_report(studied / "batch")
    before = {f.name: f.read_bytes() for f in first.parent.iterdir()}
    study_report.write_report(studied / "batch")
    assert {f.name: f.read_bytes() for f in first.parent.iterdir()} == before


def test_table_of_seeds_of_which_one_is_never_as_far_as_sgd(tmp_path, monkeypatch):
    write_axis(tmp_path, grid.values("seed", (0, 1)), name="Two seeds")
    write_cell(tmp_path, 0, energies=False, own=True)
    monkeypatch.setitem(LOSSES, "bulk_sgd", LOSSES["dom_sgd"])
    write_cell(tmp_path, 1, energies=False)
    for index, accuracy in enumerate((0.8, 0.81)):
        place = sweep.cell_folder(tmp_path, index)
        edit_rows(place, lambda row, x=accuracy: row | {"test_accuracy": x})
        edit_info(tmp_path, index, command="first\nsecond" if index else "second")
    page = study_report.write_report(tmp_path).read_text()
    assert "<td>1 of 2 seeds: 1.55</td>" in page  # 34 / 22
    assert "<td>0 of 2 seeds</td>" in page  # of Dom-SGD
    assert "<td>80.5 ±\N{NO-BREAK SPACE}0.7\N{NO-BREAK SPACE}%</td>" in page
    assert "functions are the last finite values." in page
    assert page.count("Two seeds</h") == 1
    assert "<dt>commands (grown)</dt><dd>second\nfirst</dd>" in page


@pytest.mark.parametrize(
    ("mean", "deviation", "text"),
    [
        (1.371, 0.00897, "1.37 ± 0.01"),
        (-0.00375, 0.067, "−0.0037 ± 0.0670"),
        (12_345.6, 678.9, "12,346 ± 679"),
        (1e-7, 1e-9, "1.00e-7 ± 1.00e-9"),
    ],
)
def test_mean_and_deviation_end_at_the_same_decimal(mean, deviation, text):
    assert plus_minus(study.Spread(mean, deviation, 3)) == text


def test_only_fields_that_the_runs_use_and_share_describe_them():
    def config(optimizer, rank):
        return {
            "model": {"name": "transformer", "hidden": [200], "activation": "gelu"},
            "loss": {"name": "cross_entropy", "reduction": "sum"},
            "optimizer": {"name": optimizer, "momentum": 0.9, "projection": "update"},
            "data": {"name": "mnist5k", "num_train": 0},
            "batch_size": 50,
            "subspace": {"rank": rank, "solver": "lanczos"},
        }

    used = dict(study_report.shared_fields([config("adam", 3), config("adam", 5)]))
    assert used == {
        "data.name": "mnist5k",
        "model.name": "transformer",
        "model.activation": "gelu",
        "loss.name": "cross_entropy",
        "optimizer.name": "adam",
        "optimizer.projection": "update",
        "batch_size": 50,
        "subspace.solver": "lanczos",
    }
    plain = config("sgd", 3)
    assert dict(study_report.shared_fields([plain]))["optimizer.momentum"]
    for field, group, name in (
        ("model.activation", "model", "vgg11"),
        ("loss.reduction", "loss", "mse"),
    ):
        plain[group]["name"] = name
        assert field in dict(study_report.shared_fields([plain]))


def test_claims_that_the_runs_do_not_decide_are_folded_away(tmp_path):
    write_axis(tmp_path, [{"seed": 0}, {"seed": 1}])
    for index in range(2):
        write_cell(tmp_path, index)
    text = study_report.write_report(tmp_path).read_text()
    shown, folded = text.split("Claims that these runs do not decide", 1)
    assert "Dom-SGD stalls" in shown
    assert "Interpolation trades" in folded.split("</details>")[0]
    assert "not measured" not in shown


def test_a_sweep_that_decides_no_claim_has_no_claims_table(tmp_path):
    write_axis(tmp_path, grid.values("rank", (1, 5)))
    for index in range(2):
        write_cell(tmp_path, index, energies=False)
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "claims.md").write_text("of an earlier report")
    assert "Claims" not in study_report.write_report(tmp_path).read_text()
    assert not (folder / "claims.md").exists()
    assert "claims" not in json.loads((folder / "tables.json").read_text())
