"""The documentation site builds without a warning, and needs nothing from elsewhere."""

import html.parser
import os
import re
import subprocess
import sys

import pytest
from paths import ROOT

import bulk_sgd

pytestmark = pytest.mark.slow


class Page(html.parser.HTMLParser):
    """What a page loads, its anchors, and the number of its formulas."""

    def __init__(self, path):
        super().__init__()
        self.loads, self.anchors, self.formulas = [], set(), 0
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        self.formulas += tag == "math"
        if tag in ("script", "img", "iframe") and "src" in attributes:
            self.loads.append(attributes["src"])
        if tag == "link" and attributes.get("rel") in ("stylesheet", "icon"):
            self.loads.append(attributes["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built from this tree."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_nothing_is_loaded_from_elsewhere(site):
    for path in site.rglob("*.html"):
        for source in Page(path).loads:
            if not source.startswith("data:image/"):
                assert not re.match(r"(\w+:)?//", source), (path, source)
                # The error page, at any depth, starts from the root.
                base = site if source.startswith("/") else path.parent
                assert (base / source.lstrip("/").partition("?")[0]).exists(), source


def test_everything_public_is_in_the_reference(site):
    reference = map(Page, (site / "reference").glob("*.html"))
    anchors = {str(anchor) for page in reference for anchor in page.anchors}
    public = [(getattr(bulk_sgd, name).__module__, name) for name in bulk_sgd.__all__]
    missing = {".".join(path) for path in public} - anchors
    assert not missing, "add ::: lines to a page of docs/reference"
    assert not any("._" in anchor for anchor in anchors)


def test_sections_of_docstrings_are_read(site):
    text = (site / "reference/transforms.html").read_text("utf-8")
    start = text.index('id="bulk_sgd.transforms.scale_by_subspace.scale_by_subspace"')
    section = text[start : text.index('id="bulk_sgd.transforms.switch.Switch"')]
    for title in ("Parameters", "Returns", "Raises", "Examples"):
        assert f"{title}:" in section
    assert "Args:" not in section
    returns = 0
    for path in (site / "reference").glob("*.html"):
        text = path.read_text("utf-8")
        assert "<blockquote>" not in text, path  # >>> quotes in Markdown
        for section in re.findall(r"Returns:</span></p>(.*?)</ul>", text, re.DOTALL):
            returns += 1
            assert section.count('<li class="doc-section-item') == 1  # not one a line
    assert returns > 20


def test_formulas_and_the_notebook_are_there(site):
    assert Page(site / "concepts.html").formulas > 20
    assert "arithmatex" not in (site / "concepts.html").read_text("utf-8")
    figures = Page(site / "notebooks/first_subspace.html").loads
    assert sum(source.startswith("data:image/png") for source in figures) == 2
