"""The Python blocks of the documentation run as they stand."""

import math
import pathlib
import re

import numpy as np
import optax
import pytest

import bulk_sgd
from bulk_sgd import grid

ROOT = pathlib.Path(__file__).parents[1]


def run(path, blocks):
    """The names that the blocks of a page define, run one after the other."""
    text = (ROOT / path).read_text("utf-8")
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    for block in found[blocks]:
        exec(compile(block, path, "exec"), names)
    return names


def test_readme_moves_only_the_flat_parameter(capsys):
    params = run("README.md", slice(1))["params"]
    assert abs(float(params["flat"])) < 0.1
    assert float(params["sharp"]) == pytest.approx(1, abs=1e-3)
    assert "[100.]" in capsys.readouterr().out


def test_nnx_recipe_trains_and_compiles_once():
    names = run("docs/recipes.md", slice(1))
    assert names["step"]._cache_size() == 1
    data = names["inputs"], names["targets"]
    before = names["nnx"].Linear(3, 2, rngs=names["nnx"].Rngs(0))
    before = names["nnx"].split(before, names["nnx"].Param)[1]
    assert names["loss"](names["params"], *data) < names["loss"](before, *data)
    kernel = names["model"].kernel[...]
    np.testing.assert_array_equal(kernel, names["params"]["kernel"][...])
    assert optax.tree_utils.tree_get(names["state"], "switched")


def test_scan_recipe_and_the_state(capsys):
    names = run("docs/recipes.md", slice(1, 3))
    losses = names["losses"]
    assert losses.shape == (50,)
    assert losses[-10:].mean() < losses[:10].mean()
    get = lambda name: optax.tree_utils.tree_get(names["state"], name)
    assert int(get("refreshes")) == 5
    table = (ROOT / "docs/recipes.md").read_text("utf-8")
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", row):
            assert get(name) is not None
    assert math.isfinite(float(capsys.readouterr().out.split()[-1]))


def test_count_is_kept_by_others_too():
    tx = optax.chain(optax.adam(1e-2), bulk_sgd.project_bulk(1))
    state = tx.init(np.ones(3, np.float32))
    with pytest.raises(KeyError):
        optax.tree_utils.tree_get(state, "count")


def test_sweep_of_the_study_is_valid():
    names = run("docs/study.md", slice(1))
    cells = names["get_sweep"]()
    assert len(cells) == 2 * 2 * 3
    base = names["get_config"]()
    assert {grid.apply(base, cell).subspace.rank for cell in cells} == {5, 10}
