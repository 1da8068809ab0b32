"""The documentation names only what exists, and everything that is public."""

import ast
import pkgutil
import re

import pytest
from pages import EVERY_PAGE, PAGES, blocks
from paths import ROOT

import bulk_sgd
from bulk_sgd.lab import config as config_lib


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_links_lead_to_files(page):
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s#]+)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_everything_public_has_a_page_of_the_reference():
    text = "".join(
        path.read_text("utf-8") for path in (ROOT / "docs/reference").glob("*.md")
    )
    shown = re.findall(r"^::: (\S+)(?:\n    options: (.*))?", text, re.MULTILINE)
    for name in bulk_sgd.__all__:
        module = getattr(bulk_sgd, name).__module__
        places = {f"{module}.{name}", module}
        members = [
            re.search(r"members: \[(.*?)\]", options)
            for target, options in shown
            if target in places
            or ("show_submodules" in options and target == module.rpartition(".")[0])
        ]
        assert any(m is None or name in m[1].split(", ") for m in members), name


def _place(module):
    """The entry of CONTRIBUTING's table that a module belongs to."""
    parts = module.split(".")[1:]
    return "/".join(parts[: 2 if parts[0] == "lab" else 1])


def test_dependencies_point_downwards():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    table = [re.findall(r"`([\w/]+?)(?:\.py|/)`", row.split("|")[1])
             for row in text.splitlines() if row.startswith("| `")]  # fmt: skip
    level = {name: index for index, row in enumerate(table) for name in row}
    for path in (ROOT / "bulk_sgd").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts in (("bulk_sgd", "__init__"), ("bulk_sgd", "lab", "__init__")):
            continue
        own = _place(".".join(parts))
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("bulk_sgd"):
                for name in node.names:
                    other = _place(f"{node.module}.{name.name}")
                    assert level[other] <= level[own], f"{path} imports {other}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_files_and_fields_that_exist(page):
    for block in blocks(page, "bash"):
        for path in re.findall(r"\b(?:configs|scripts)/[\w/.]+\w", block):
            assert (ROOT / path).exists(), path
        for field in re.findall(r"--config\.([\w.]+)", block):
            value = config_lib.default()
            for part in field.split("."):
                assert part in value, field
                value = value[part]
        for module in re.findall(r"python -m (bulk_sgd[\w.]*)", block):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or path.is_dir(), module


@pytest.mark.parametrize("page", [p for p in EVERY_PAGE if p != "CHANGELOG.md"])
def test_paths_modules_and_fields_in_prose_exist(page):
    text = (ROOT / page).read_text("utf-8")
    for path in re.findall(r"`((?:bulk_sgd|configs|scripts|tests)/[\w./]*)", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"(?:`|^::: )(bulk_sgd(?:\.\w+)+)", text, re.MULTILINE):
        pkgutil.resolve_name(name)
    for field in re.findall(r"`(?:--)?config\.([a-z_.]+\w)", text):
        value = config_lib.default()
        for part in field.split("."):
            assert part in value, field
            value = value[part]


def test_readme_fits_in_900_words():
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 900
