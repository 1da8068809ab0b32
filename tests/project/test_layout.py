"""The library stands without the lab, and all files name the same version."""

import ast
import re
import sys

import pytest
import yaml
from paths import ROOT

import bulk_sgd

PACKAGE = ROOT / "bulk_sgd"
LIBRARY = sorted(
    path.relative_to(ROOT).as_posix()
    for path in PACKAGE.rglob("*.py")
    if PACKAGE / "lab" not in path.parents
    if path.name not in ("main.py", "sweep.py", "report.py", "analyze.py")
)


def imported(tree):
    """Full names of all that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def foreign(source):
    """What the library must not import."""
    listed = (ROOT / "requirements/library.txt").read_text("utf-8")
    allowed = set(re.findall(r"^\w+", listed, re.M)) | sys.stdlib_module_names
    for name in imported(ast.parse(source)):
        parts = name.split(".")
        if parts[0] not in allowed | {"bulk_sgd"} or parts[:2] == ["bulk_sgd", "lab"]:
            yield name


@pytest.mark.parametrize("path", LIBRARY)
def test_library_imports_neither_the_lab_nor_its_packages(path):
    assert list(foreign((ROOT / path).read_text("utf-8"))) == []


def test_all_folders_of_the_library_are_looked_at():
    folders = {path.split("/")[1] for path in LIBRARY if path.count("/") > 1}
    assert folders == {"linalg", "curvature", "solvers", "transforms", "spectra"}
    source = "def f():\n  import flax.nnx, math\n  from bulk_sgd import lab, hessian"
    assert list(foreign(source)) == ["flax.nnx", "bulk_sgd.lab"]


def test_citation_and_changelog_name_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == bulk_sgd.__version__
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    papers = [paper["identifiers"][0]["value"] for paper in citation["references"]]
    assert papers == ["arXiv:2505.11972", "arXiv:2405.16002"]
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(r"^## (\S+)", changelog, re.M)[1] == bulk_sgd.__version__


def test_changelog_says_where_modules_went():
    rows = re.findall(
        r"^\| .*`bulk_sgd\.([\w.]+)` \| `(\S+?)` \|$",
        (ROOT / "CHANGELOG.md").read_text("utf-8"),
        re.M,
    )
    assert len(rows) > 40
    gone = {old for old, _ in rows} - {"curvature", "solvers", "transforms"}
    gone -= {"sweep", "report"}  # commands
    for old in gone:
        assert not (PACKAGE / f"{old.replace('.', '/')}.py").exists(), old
    for _, new in rows:
        path = new if "/" in new else f"{new.replace('.', '/')}.py"
        package = path.replace(".py", "/__init__.py")
        assert (ROOT / path).exists() or (ROOT / package).exists(), new
