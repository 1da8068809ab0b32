"""The report of a run: what it reads, says, draws and refuses."""

import base64
import html.parser
import io
import json
import math
import re
import subprocess
import sys
import types

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex

from bulk_sgd import report
from bulk_sgd.report import __main__ as command
from bulk_sgd.report import figures
from bulk_sgd.report.narrative import happened, number, percent, state
from bulk_sgd.report.results import PREFIX, read_run
from bulk_sgd.report.style import arm_styles, spread

SCALES = {
    "sgd": ("SGD", 1.0, 1.0),
    "dom_sgd": ("Dom-SGD", 1.0, 0.0),
    "bulk_sgd": ("Bulk-SGD", 0.0, 1.0),
    "bulk_path(0.5)": ("Bulk path α = 0.5", 0.5, 1.0),
    "scales(0.5,1.5)": ("Scales (0.5, 1.5)", 0.5, 1.5),
}
SWITCH, END, LOSS_AT_SWITCH = 100, 200, 0.5
ENDS = {"sgd": 0.1, "dom_sgd": 0.49, "bulk_sgd": 0.101}


def row(arm, step, loss, **others):
    start = 0 if arm == PREFIX else SWITCH
    top = 150 + step / 10 if math.isfinite(loss) else math.nan
    values = {
        "arm": arm,
        "step": step,
        "train_loss": loss,
        "test_accuracy": 0.9 + step / 10_000,
        "alignment_update": 0.2 if step == SWITCH else 0.8 + (step % 20) / 100,
        "alignment_gradient": 0.9,
        # Eigenvalues are rarer than losses.
        "eigenvalues": None if step % 20 else [top, top / 2, top / 4],
        "sharpness": None if step % 20 else top,
        "sharpness_ratio": None if step % 20 else 0.01 * top,
        "matvecs": 12 * (step - start),
        "failed_refreshes": 0,
        "seconds": 0.5 * (step - start),
        "seconds_curvature": 0.4 * (step - start),
        "something_new": [1, 2],
    }
    values |= others
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in values.items()
    }


def write_run(workdir, ends=ENDS, until=None, tail="", diverged=(), **info):
    """A run whose arms go geometrically from the loss at the switch to `ends`."""
    rows = [row(PREFIX, s, 2.0 * 4 ** (-s / SWITCH)) for s in range(0, SWITCH + 1, 10)]
    arms = {}
    for name, end in ends.items():
        label, a, b = SCALES[name]
        last = (until or {}).get(name, END)
        for step in range(SWITCH, last + 1, 10):
            share = (step - SWITCH) / (END - SWITCH)
            rows.append(row(name, step, 0.5 * (end / 0.5) ** share))
        status = "complete" if last == END else "interrupted"
        if name in diverged:
            status, last = "diverged", last + 10
            rows.append(row(name, last, math.nan, alignment_update=None))
        if last < SWITCH:
            status, last = "pending", SWITCH
        arms[name] = {
            "label": label,
            "formula": f"(a, b) = ({a:g}, {b:g})",
            "dominant_scale": a,
            "bulk_scale": b,
            "status": status,
            "last_step": last,
        }
    record = {
        "status": "complete",
        "name": "mnist",
        "config": {"model": {"hidden": [200, 200]}},
        "command": "python -m bulk_sgd.main --config=configs/mnist.py",
        "versions": {"jax": "0.10.2"},
        "device": "cpu x 2",
        "num_params": 199_210,
        "num_train": 5000,
        "learning_rate": 0.01,
        "rank": 3,
        "switch": {"step": SWITCH, "reason": "alignment 0.953 > 0.95"},
        "loss_label": "MSE (sum over classes)",
        "prefix": {"status": "complete", "last_step": SWITCH},
        "arms": arms,
    }
    workdir.mkdir(exist_ok=True)
    (workdir / "run.json").write_text(json.dumps(record | info))
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    (workdir / "metrics.jsonl").write_text(lines + tail)
    return workdir


SPACE = {
    "curvature": "hessian",
    "data": "subset",
    "subset_size": 1000,
    "solver": "lanczos",
    "refresh_every": 20,
}
KINDS = {
    "complete": {"ends": dict.fromkeys(SCALES, 0.1)},
    "diverged": {
        "ends": {"sgd": 0.1, "bulk_sgd": 1e30},
        "until": {"bulk_sgd": 150},
        "diverged": ["bulk_sgd"],
    },
    "interrupted": {
        "until": {"dom_sgd": 150, "bulk_sgd": 0},
        "tail": '{"arm": "dom_sgd", "step": 160, "train_l',
        "status": "interrupted",
    },
    "no_arms": {"ends": {}, "switch": None, "status": "running"},
    "bare": {"ends": {}, **dict.fromkeys(["rank", "learning_rate", "switch"])},
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
    path = report.write_report(workdir)
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
        assert note.startswith("This run was interrupted")
        assert "Dom-SGD: interrupted, step 150" in note
        assert "Bulk-SGD: pending" in note
        assert text.index(note) < text.index("What happened")
    elif kind == "no_arms":
        (note,) = notes
        assert note.startswith("This run is still going, or was killed")
    else:
        assert not notes


def test_table_shows_the_numbers_of_the_files(tmp_path):
    page = Page(report.write_report(write_run(tmp_path)).read_text("utf-8"))
    assert [row[0] for row in page.table[1:]] == [
        "Prefix",
        "SGD",
        "Dom-SGD",
        "Bulk-SGD",
    ]
    cells = page.cells("Bulk-SGD")
    # Rows after the switch: 110, 120, …, 200, half of them at 0.9 and half at 0.8; the
    # row at the switch itself, at 0.2, does not count.
    assert cells == {
        "arm": "Bulk-SGD",
        "formula": "(a, b) = (0, 1)",
        "status": "complete",
        "steps": "100",
        "training loss": "0.101",
        "loss / loss at switch": "0.202",
        "test accuracy": "92.00\N{NO-BREAK SPACE}%",
        "mean χ₃": "0.850",
        "λ₁": "170",
        "ηλ₁": "1.70",
        "matvecs": "1,200",
        "failed refreshes": "0",
        "seconds": "50.0",
        "curvature share": "80\N{NO-BREAK SPACE}%",
    }
    prefix = page.cells("Prefix")
    assert prefix["loss / loss at switch"] == "1.00"
    assert prefix["mean χ₃"] == "–"


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
    text = report.write_report(tmp_path).read_text("utf-8")
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
    assert state(run) == ["Left out: 2 unreadable lines of metrics.jsonl."]
    # Complete but for its line end, a last line counts.
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows[:2]))
    assert read_run(tmp_path).steps("sgd").tolist() == [110, 120]


def test_colors_do_not_depend_on_the_other_arms(tmp_path):
    everything = read_run(write_run(tmp_path, **KINDS["complete"]))
    summaries = [everything.summary(arm) for arm in everything.arms]
    styles = arm_styles(summaries)
    assert styles["sgd"].color == "#222222"
    assert styles["dom_sgd"].color == "#D55E00"
    assert styles["bulk_sgd"].color == "#0072B2"
    assert arm_styles(summaries[::-1]) == styles
    assert arm_styles(summaries[:2])["dom_sgd"] == styles["dom_sgd"]
    assert len({style.color for style in styles.values()}) == 5
    dashed = {styles[name].linestyle for name in summaries_between(summaries)}
    assert len(dashed) == 2
    assert "-" not in dashed


def summaries_between(summaries):
    return [s.name for s in summaries if s.method is None]


def test_every_figure_uses_the_same_colors(tmp_path):
    run = read_run(write_run(tmp_path, **KINDS["complete"]))
    styles = arm_styles([run.summary(arm) for arm in run.arms])
    colors = {name: to_hex(style.color) for name, style in styles.items()}
    for figure in (figures.loss_figure(run), figures.alignment_figure(run)):
        for axes in figure.axes:
            drawn = {line.get_label(): to_hex(line.get_color()) for line in axes.lines}
            assert {name: drawn[name] for name in colors} == colors
    panels = dict(zip(run.arms, figures.eigenvalue_figure(run).axes))
    for name, axes in panels.items():
        assert axes.get_title(loc="left").startswith(run.summary(name).label)
        assert colors[name] in {to_hex(line.get_color()) for line in axes.lines}
    bars = figures.cost_figure(run).axes[0].patches
    drawn = [to_hex(bar.get_facecolor()) for bar in bars[2::2]]
    assert drawn == [colors[arm] for arm in run.arms]
    text = report.write_report(tmp_path).read_text("utf-8").lower()
    assert all(f"background:{color}" in text for color in colors.values())


def test_switch_is_marked_with_step_and_reason(tmp_path):
    run = read_run(write_run(tmp_path))
    for figure in (figures.loss_figure(run), figures.alignment_figure(run)):
        for axes in figure.axes:
            assert any(list(line.get_xdata()) == [SWITCH] * 2 for line in axes.lines)
        told = [text.get_text() for text in figure.axes[0].texts]
        assert "switch at step 100: alignment 0.953 > 0.95" in told
    write_run(tmp_path, switch={"step": SWITCH, "reason": "step 100"})
    assert figures.switch_text(read_run(tmp_path)) == "switch at step 100"


def test_divergence_is_marked_and_does_not_squeeze_the_others(tmp_path):
    run = read_run(write_run(tmp_path, **KINDS["diverged"]))
    axes = figures.loss_figure(run).axes[0]
    (cross,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert axes.get_ylim()[1] == pytest.approx(20.0)
    # 7e14 at step 150 is far out: marked where the line leaves the axes.
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (110, pytest.approx(20.0))
    write_run(tmp_path, **KINDS["diverged"] | {"ends": {"sgd": 0.1, "bulk_sgd": 2.0}})
    axes = figures.loss_figure(read_run(tmp_path)).axes[0]
    (cross,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (150, pytest.approx(1.0))


@pytest.mark.parametrize(
    ("rate", "marked"), [(0.01, True), (1e-6, False), (None, False)]
)
def test_stability_threshold_is_drawn_where_it_can_be_seen(tmp_path, rate, marked):
    run = read_run(write_run(tmp_path, learning_rate=rate))
    axes = figures.eigenvalue_figure(run).axes[0]
    across = [line for line in axes.lines if list(line.get_xdata()) == [0, 1]]
    assert [line.get_ydata()[0] for line in across] == [200.0] * marked
    assert any("= 200" in text.get_text() for text in axes.texts) == marked


def test_threshold_of_a_schedule_is_drawn_along_the_steps(tmp_path):
    write_run(tmp_path, **KINDS["complete"], stability_threshold=3.8)
    metrics = tmp_path / "metrics.jsonl"
    logged = [json.loads(line) for line in metrics.read_text().splitlines()]
    for line in logged:
        line["learning_rate"] = 0.02 * (line["step"] // 100) / 2
    metrics.write_text("".join(json.dumps(line) + "\n" for line in logged))
    run = read_run(tmp_path)
    axes = figures.eigenvalue_figure(run).axes[0]
    (curve,) = [  # the other dashed one marks the switch
        line
        for line in axes.lines
        if line.get_linestyle() == "--" and len(line.get_xdata()) > 2
    ]
    assert curve.get_xdata().tolist() == list(range(100, 201, 10))
    np.testing.assert_allclose(curve.get_ydata(), [380.0] * 10 + [190.0])
    html = report.write_report(tmp_path).read_text()
    assert "Dashed: the stability threshold 3.8/η of the optimizer." in html
    assert "against the stability threshold 3.8 of the optimizer: " in html


def test_optimizers_without_a_threshold_get_none(tmp_path):
    write_run(tmp_path, **KINDS["complete"], stability_threshold=None)
    run = read_run(tmp_path)
    assert not math.isfinite(figures.stability_threshold(run))
    assert "stability threshold" not in report.write_report(tmp_path).read_text()


def test_negative_eigenvalues_are_drawn_too(tmp_path):
    write_run(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("37.5]", "-3.5]"))
    assert (
        figures.eigenvalue_figure(read_run(tmp_path)).axes[0].get_yscale() == "symlog"
    )


def test_cost_is_stacked_and_compared_per_step(tmp_path):
    until = {"bulk_sgd": 150}
    ends = {"sgd": 0.1, "bulk_sgd": 0.1}
    write_run(tmp_path, until=until, ends=ends, plain_step_seconds=0.6)
    metrics = tmp_path / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    slower = [json.loads(line) for line in lines]
    for entry in slower:
        if entry["arm"] == "bulk_sgd":
            entry["seconds"] *= 6
    metrics.write_text("\n".join(map(json.dumps, slower)))
    axes = figures.cost_figure(read_run(tmp_path)).axes[0]
    # Bulk-SGD: 25 s × 6 over half of SGD's steps, 20 s of it in curvature.
    inside, outside = axes.patches[-2:]
    assert (inside.get_width(), outside.get_width()) == (20, 130)
    assert outside.get_x() == 20
    # 150 s over 50 steps, against 0.6 s for a step without curvature.
    assert axes.texts[-1].get_text() == "600 matvecs, 5× a plain SGD step"


def test_heights_are_spread_in_order():
    heights = np.array([0.0, 0.01, 0.5, 0.5, 0.51, 1.0])
    placed = spread(heights, 0.1)
    assert (np.diff(placed) >= 0.1 - 1e-12).all()
    assert placed[0] >= 0
    assert placed[-1] <= 1
    np.testing.assert_allclose(placed[2:5], [0.4033, 0.5033, 0.6033], atol=0.01)
    np.testing.assert_allclose(spread(np.zeros(3), 9.0), [0, 0.5, 1])


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


def break_run(workdir, kind):
    write_run(workdir)
    if kind == "no run.json":
        (workdir / "run.json").unlink()
    elif kind == "no metrics.jsonl":
        (workdir / "metrics.jsonl").unlink()
    elif kind == "empty metrics.jsonl":
        (workdir / "metrics.jsonl").write_text('{"arm": "sgd", "st')
    elif kind == "broken run.json":
        (workdir / "run.json").write_text('{"status": ')


@pytest.mark.parametrize(
    ("kind", "error", "told"),
    [
        ("no run.json", FileNotFoundError, "No run.json in"),
        ("no metrics.jsonl", FileNotFoundError, "No metrics.jsonl in"),
        ("empty metrics.jsonl", ValueError, "No metric row"),
        ("broken run.json", ValueError, "no JSON object"),
    ],
)
def test_folders_without_a_run_are_refused_in_one_sentence(tmp_path, kind, error, told):
    break_run(tmp_path, kind)
    with pytest.raises(error) as raised:
        report.write_report(tmp_path)
    message = str(raised.value)
    assert told in message
    assert str(tmp_path) in message
    assert "expected" in message
    assert "\n" not in message
    assert not (tmp_path / "report").exists()


def test_main_prints_the_path_or_the_error(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "run", ends={})
    monkeypatch.setattr(
        command.flags, "FLAGS", types.SimpleNamespace(workdir=str(tmp_path / "run"))
    )
    assert not command.main(["report"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "run/report/index.html")


def test_command_line_ends_with_one_sentence_and_1(tmp_path):
    command = [sys.executable, "-m", "bulk_sgd.report", f"--workdir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"No run.json in {tmp_path}")
    assert "Traceback" not in done.stderr


def test_arms_that_never_had_a_subspace_lead_to_no_conclusion(tmp_path):
    write_run(tmp_path)
    file = tmp_path / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert "did the training" in " ".join(happened(read_run(tmp_path)))
    for each in rows:
        if each["arm"] != PREFIX:
            each |= {"eigenvalues": None, "sharpness": None, "sharpness_ratio": None}
            each["failed_refreshes"] = 4
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    record = json.loads((tmp_path / "run.json").read_text())
    for arm in record["arms"].values():
        arm["failed_refreshes"] = 4
    (tmp_path / "run.json").write_text(json.dumps(record))
    said = " ".join(happened(read_run(tmp_path)))
    assert "no subspace was ever found" in said
    assert "did the training" not in said


def test_page_says_what_the_subspace_is_that_of(tmp_path):
    write_run(tmp_path, config={"subspace": SPACE})
    text = report.write_report(tmp_path).read_text()
    assert "Hessian of 1,000 training examples, lanczos every 20 steps" in text
    space = SPACE | {"solver": "streaming_pca"}
    write_run(tmp_path / "free", config={"subspace": space})
    text = report.write_report(tmp_path / "free").read_text()
    assert "principal components of updates, streaming_pca" in text


def test_a_diverged_prefix_is_named(tmp_path):
    prefix = {"status": "diverged", "last_step": 30}
    write_run(tmp_path, until=dict.fromkeys(SCALES, 0), switch=None, prefix=prefix)
    story = " ".join(happened(read_run(tmp_path)))
    assert "diverged there, so that there are no arms" in story
