"""The code of the documentation runs as it stands, and does what the pages say."""

import functools
import json
import math
import os
import pathlib
import re
import tempfile

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import bulk_sgd
from bulk_sgd import config as config_lib
from bulk_sgd import grid

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if "```" in path.read_text("utf-8")
)
# What a reader has at hand where a page shows a fragment.
FRAGMENTS = {
    "docs/solvers.md": """
import jax.numpy as jnp, optax, bulk_sgd
batch_loss = lambda params: jnp.sum(params**4)
params = jnp.ones(12)
grads = 4 * params**3
state = optax.chain(
    optax.adam(1e-3), bulk_sgd.scale_by_subspace(10, solver=bulk_sgd.streaming())
).init(params)
""",
}


def blocks(page, language):
    text = (ROOT / page).read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def execute(name, sources):
    """What each source leaves defined, run one after the other in an empty folder."""
    names, before, left = {}, os.getcwd(), []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for source in sources:
                exec(compile(source, name, "exec"), names)
                left.append(dict(names))
        finally:
            os.chdir(before)
    return left


@functools.cache
def run(page):
    sources = [FRAGMENTS.get(page, ""), *blocks(page, "python")]
    return execute(page, sources)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page):
    run(page)


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_files_and_fields_that_exist(page):
    known = config_lib.default()
    for block in blocks(page, "bash"):
        for path in re.findall(r"\b(?:configs|scripts)/[\w/.]+\w", block):
            assert (ROOT / path).exists(), path
        for field in re.findall(r"--config\.([\w.]+)", block):
            value = known
            for part in field.split("."):
                assert part in value, field
                value = value[part]
        for module in re.findall(r"python -m (bulk_sgd[\w.]*)", block):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()


def test_readme_moves_only_the_flat_parameter(capsys):
    run.cache_clear()  # for what it prints
    params = run("README.md")[-1]["params"]
    assert abs(float(params["flat"])) < 0.1
    assert float(params["sharp"]) == pytest.approx(1, abs=1e-3)
    assert "[100.]" in capsys.readouterr().out


def test_getting_started_learns_along_the_bulk():
    _, _, found, trained, configured = run("docs/getting_started.md")[-4:] if False else (
        None, *run("docs/getting_started.md"))
