"""The report of a run: what it reads, its page, and what it refuses."""

import base64
import html.parser
import io
import json
import math
import pathlib
import re
import subprocess
import sys
import types

import matplotlib.image
import numpy as np
import pytest
from written_runs import KINDS, SWITCH, row, write_run
from written_studies import write_axis

from bulk_sgd.lab.commands import report as command
from bulk_sgd.lab.report import run_report
from bulk_sgd.lab.report.narrative import state
from bulk_sgd.lab.report.results import read_run
from bulk_sgd.lab.report.write import write_report

SPACE = {
    "curvature": "hessian",
    "data": "subset",
    "subset_size": 1000,
    "solver": "lanczos",
    "refresh_every": 20,
}


class Page(html.parser.HTMLParser):
    """The attributes and the table rows of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.table, self.notes = [], [], [], []
        self.open = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag == "tr":
            self.table.append([])
        if tag in ("td", "th"):
            self.table[-1].append("")
            self.open = self.table[-1]
        if tag == "p" and ("class", "note") in attrs:
            self.notes.append("")
            self.open = self.notes

    def handle_endtag(self, tag):
        if tag in ("td", "th", "p"):
            self.open = None

    def handle_data(self, data):
        if self.open is not None:
            self.open[-1] += data

    def cells(self, label):
        head, *rows = self.table
        return dict(zip(head, next(row for row in rows if row[0] == label)))


@pytest.fixture(scope="module", params=KINDS)
def written(request, tmp_path_factory):
    workdir = write_run(tmp_path_factory.mktemp("runs") / "run", **KINDS[request.param])
    path = write_report(workdir)
    return request.param, path, path.read_text("utf-8")


def test_page_is_self_contained(written):
    _, path, text = written
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?:|@import|url\(", text)
    sources = [value for _, name, value in page.attributes if name in ("src", "href")]
    names = ["loss", "alignment", "eigenvalues", "cost"]
    assert len(sources) == len(names)
    for source, name in zip(sources, names):
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        assert data == (path.parent / f"{name}.png").read_bytes()


def test_figures_are_valid_and_not_blank(written):
    _, path, _ = written
    for name in ("loss", "alignment", "eigenvalues", "cost"):
        image = matplotlib.image.imread(
            io.BytesIO((path.parent / f"{name}.png").read_bytes())
        )
        assert image.shape[1] >= 1500
        ink = (image[..., :3].min(axis=-1) < 0.9).mean()
        assert 0.005 < ink < 0.5


def test_alternative_texts_are_there_and_nothing_reads_nan(written):
    _, _, text = written
    page = Page(text)
    alts = [
        value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")
    ]
    assert len(alts) == 4
    assert all(len(alt) > 30 for alt in alts)
    assert ("html", "lang", "en") in page.attributes
    assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"base64,[^\"]*", "", text))


def test_unfinished_runs_say_so_at_the_top(written):
    kind, _, text = written
    notes = Page(text).notes
    if kind == "interrupted":
        (note,) = notes
        assert "This run is not complete (interrupted: one was lost); the" in note
        assert "Dom-SGD: interrupted, step 150" in note
        assert "Bulk-SGD: pending" in note
        assert text.index(note) < text.index("What happened")
    elif kind == "no_arms":
        (note,) = notes
        assert note.startswith("This run is not complete (running, or killed); the")
    else:
        assert not notes


def test_table_shows_the_numbers_of_the_files(tmp_path):
    page = Page(write_report(write_run(tmp_path)).read_text("utf-8"))
    assert [row[0] for row in page.table[1:]] == [
        "Prefix",
        "SGD",
        "Dom-SGD",
        "Bulk-SGD",
    ]
    cells = page.cells("Bulk-SGD")
    # Rows after the fork: 110, 120, …, 200, half of them at 0.9 and half at 0.8; the
    # row at the fork itself, at 0.2, does not count.
    assert cells == {
        "arm": "Bulk-SGD",
        "formula": "(a, b) = (0, 1)",
        "status": "complete",
        "steps": "100",
        "training loss": "0.101",
        "loss / loss at fork": "0.202",
        "test accuracy": "92.00\N{NO-BREAK SPACE}%",
        "mean χ₃": "0.850",
        "λ₁": "170",
        "ηλ₁": "1.70",
        "matvecs": "1,200",
        "failed refreshes": "0",
        "seconds": "50.0",
        "curvature share": "80.0\N{NO-BREAK SPACE}%",
    }
    prefix = page.cells("Prefix")
    assert prefix["loss / loss at fork"] == "1.00"
    assert prefix["mean χ₃"] == "–"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "Hessian of 1,000 training examples, lanczos, every 20 steps"),
        (
            {"refresh_every": 1},
            "Hessian of 1,000 training examples, lanczos, every step",
        ),
        (
            {"solver": "streaming_pca"},
            "principal components of updates, streaming_pca, every 20 steps",
        ),
        (
            {"curvature": "gauss_newton", "data": "full", "preconditioned": True},
            "preconditioned Gauss-Newton matrix of the full training set, lanczos, "
            "every 20 steps",
        ),
        (
            {"solver": "power", "along": "update", "blocks": "layer", "keep": "rate"}
            | {"drift": 0.1, "probe_every": 3, "threshold": 2.0},
            "Hessian of 1,000 training examples, power, along the update, "
            "blocks layer, on drift above 0.1, probed, every 60 steps, "
            "eigenvalues above 2 / η",
        ),
    ],
)
def test_page_names_the_subspace(changes, text):
    assert run_report._subspace(SPACE | changes) == text


def test_page_shows_all_commands_and_only_fields_that_the_run_uses(tmp_path):
    model = {"name": "own:Net", "hidden": [200], "num_heads": 4, "options": {"wide": 3}}
    write_run(tmp_path, config={"model": model}, command="first\nsecond")
    text = write_report(tmp_path).read_text("utf-8")
    assert "<dt>commands (grown)</dt><dd>first\nsecond</dd>" in text
    assert re.search(r"dd {[^}]*white-space: pre-line", text)
    assert "&quot;wide&quot;: 3" in text
    assert "hidden" not in text
    assert "num_heads" not in text


def test_text_from_files_is_escaped(tmp_path):
    evil = '<script>alert("$x^{$")</script>'
    write_run(
        tmp_path,
        name=evil,
        loss_label=evil,
        command=evil,
        device=evil,
        status=evil,
        config={evil: [evil]},
        versions={evil: evil},
        switch={"step": SWITCH, "reason": evil},
        arms={
            "sgd": {"label": evil, "formula": evil, "status": evil},
            evil: {"label": evil},
        },
    )
    text = write_report(tmp_path).read_text("utf-8")
    assert "script" not in Page(text).tags
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_reading_is_robust_against_kills_and_resumes(tmp_path):
    rows = [
        json.dumps(row("sgd", 120, 0.4)),
        json.dumps(row("sgd", 110, 0.45)),
        '{"arm": "sgd", "st{"arm": "sgd", "step": 130}',
        "[1, 2]",
        json.dumps(row("sgd", 120, 0.3)),
        json.dumps(row("sgd", 130, math.nan)),
    ]
    write_run(tmp_path, ends={})
    torn = '{"arm": "sgd", "step": 140, "tra'
    (tmp_path / "metrics.jsonl").write_text("\n".join([*rows, torn]))
    run = read_run(tmp_path)
    np.testing.assert_array_equal(run.steps("sgd"), [110, 120, 130])
    np.testing.assert_array_equal(run.series("sgd", "train_loss"), [0.45, 0.3, np.nan])
    assert run.eigenvalues("sgd").shape == (3, 3)
    assert np.isnan(run.eigenvalues("sgd")[0]).all()
    assert run.unreadable == 2
    assert state(run) == ["Unreadable lines in metrics.jsonl, left out: 2."]
    # Complete but for its line end, a last line counts.
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows[:2]))
    assert read_run(tmp_path).steps("sgd").tolist() == [110, 120]


@pytest.mark.parametrize(
    ("file", "content", "error", "text"),
    [
        ("run.json", None, FileNotFoundError, "No run.json in"),
        ("metrics.jsonl", None, FileNotFoundError, "No metrics.jsonl in"),
        ("metrics.jsonl", '{"arm": "sgd", "st', ValueError, "No metric row"),
        ("run.json", '{"status": ', ValueError, "not a JSON object"),
    ],
)
def test_folders_without_a_run_are_refused_in_one_sentence(
    tmp_path, file, content, error, text
):
    write_run(tmp_path)
    (tmp_path / file).unlink()
    if content:
        (tmp_path / file).write_text(content)
    with pytest.raises(error) as raised:
        write_report(tmp_path)
    message = str(raised.value)
    assert text in message
    assert str(tmp_path) in message
    assert "expected" in message
    assert "\n" not in message
    assert not (tmp_path / "report").exists()


def test_main_prints_the_path_or_the_error(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "run", ends={})
    write_axis(tmp_path / "sweep", [{"seed": 0}])
    for name in ("run", "sweep"):
        for out in (None, str(tmp_path / "to" / name)):
            flags = {"workdir": str(tmp_path / name), "labels": None, "out": out}
            monkeypatch.setattr(command.flags, "FLAGS", types.SimpleNamespace(**flags))
            assert not command.main(["report"])
            page = f"{out or tmp_path / name / 'report'}/index.html"
            assert capsys.readouterr().out == f"{page}\n"
            assert Page(pathlib.Path(page).read_text("utf-8")).tags


def test_command_line_ends_with_one_sentence_and_1(tmp_path):
    command = [sys.executable, "-m", "bulk_sgd.report", f"--workdir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"No run.json in {tmp_path}")
    assert "Traceback" not in done.stderr
