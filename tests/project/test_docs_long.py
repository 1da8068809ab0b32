"""The code of long pages runs as it stands, and does what they say."""

import json
import math
import re

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from four_devices import python
from jax.flatten_util import ravel_pytree
from pages import LONG, NOTEBOOK, blocks, check, run
from paths import ROOT

import bulk_sgd

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("page", LONG)
def test_python_blocks_run(page):
    check(page)


def test_getting_started_learns():
    after, printed = run("docs/getting_started.md")
    start, end = after[0]["params"], after[1]["params"]
    loss = after[0]["loss"]
    assert after[0]["pairs"].converged
    assert loss(end) < 0.7 * loss(start)
    point = after[2]["point"]
    assert abs(float(point["flat"])) < 0.1
    assert float(point["sharp"]) == pytest.approx(1, abs=1e-3)
    assert "[100.]" in printed


MODELS = {"plain": 2, "nnx": 3, "linen": 5, "equinox": 6}


@pytest.mark.parametrize("kind", MODELS)
def test_own_models_have_exact_eigenpairs_and_learn(kind):
    names = run("docs/own_model.md")[0][MODELS[kind]]
    names["train"].__globals__.update(names)  # later blocks redefine them
    loss, params, pairs = names["loss"], names["params"], names["pairs"]
    flat, unravel = ravel_pytree(params)
    on_data = lambda flat: loss(unravel(flat), names["x"], names["y"])
    dense = np.linalg.eigvalsh(jax.jit(jax.hessian(on_data))(flat))
    assert pairs.converged
    # An eigenvalue errs by at most its residual.
    np.testing.assert_allclose(pairs.eigenvalues, dense[:-4:-1], atol=1e-3 * dense[-1])
    end, _ = ravel_pytree(names["trained"])
    moved = unravel(end - flat)
    # Adam's own steps have more: the subspace turns little in twenty of 0.01.
    assert 0 < pairs.alignment(moved) < 0.2


def test_idioms_of_frameworks_hand_value_fn_over():
    after, _ = run("docs/own_model.md")
    states = after[4]["opt_state"], after[7]["state"], after[8]["state"]
    for state in states:
        get = lambda name, state=state: optax.tree_utils.tree_get(state, name)
        assert get("refreshes") == 3
        assert get("failed_refreshes") == 0
        assert get("eigenvalues")[0] > 0
    names = after[8]
    loss = lambda *key: (
        lambda params: names["mean_loss"](params, names["x"], names["y"], *key)
    )
    bulk_sgd.check_deterministic(loss(), names["params"])
    # What a reader is warned of: the gradient's own loss is another function.
    own = loss(jax.random.key(0))
    assert own(names["params"]) != loss()(names["params"])


def test_ways_to_use_several_devices_agree():
    names = run("docs/devices.md")[0][-1]
    np.testing.assert_allclose(names["by_shard_map"], names["by_jit"], rtol=1e-5)
    np.testing.assert_allclose(names["by_pmap"][0], names["by_jit"], rtol=1e-5)


def test_ways_to_use_several_devices_agree_on_four():
    source = "\n".join(blocks("docs/devices.md", "python"))
    source += """
import numpy as np
whole, _ = step(params, tx.init(params), x)
for found in (by_jit, by_shard_map, *by_pmap):
    np.testing.assert_allclose(found, whole, rtol=1e-5)
assert len(sharded_params.addressable_shards) == 4
# As the page says of shard_map without checks, another solver, and of other users.
tx = bulk_sgd.bulk_sgd(0.1, rank=2, solver=bulk_sgd.streaming(), refresh_every=2)
unchecked = jax.jit(jax.shard_map(replica_step, mesh=mesh, check_vma=False,
    in_specs=(P(), P(), P("data")), out_specs=(P("data"), P())))
pieces = x.reshape(4, -1, 4)
for_all = step(params, tx.init(params), x)[0]
for found in unchecked(params, tx.init(params), x)[0].reshape(4, 4):
    np.testing.assert_allclose(found, for_all, rtol=1e-5)
try:
    jax.pmap(step, axis_name="data")(
        replicate(params), replicate(tx.init(params)), pieces)
except ValueError as error:
    assert "value_fn takes no mean over 'data'" in str(error)
else:
    raise AssertionError
seeds, _ = jax.pmap(step)(replicate(params), replicate(tx.init(params)), pieces)
for found, piece in zip(seeds, pieces):
    alone, _ = step(params, tx.init(params), piece)
    np.testing.assert_allclose(found, alone, rtol=1e-5)
"""
    done = python("-c", source)
    assert done.returncode == 0, done.stderr


def test_scan_recipe_and_the_state():
    after, printed = run("docs/recipes.md")
    losses = after[0]["losses"]
    assert losses.shape == (50,)
    assert losses[-10:].mean() < losses[:10].mean()
    get = lambda name: optax.tree_utils.tree_get(after[0]["state"], name)
    assert int(get("refreshes")) == 5
    table = (ROOT / "docs/recipes.md").read_text("utf-8")
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", row):
            assert get(name) is not None
    before_next = printed.partition("[2.]")[0]  # what the recipe after it prints
    assert math.isfinite(float(before_next.split()[-1]))


def test_recipes_to_resume_to_accumulate_and_to_freeze():
    after, _ = run("docs/recipes.md")
    jax.tree.map(
        np.testing.assert_array_equal, after[3]["restored"]["state"], after[2]["state"]
    )
    whole = jax.grad(after[4]["data"].take(after[4]["batches"][0]))(after[4]["params"])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        after[4]["grads"],
        whole,
    )
    state = after[5]["state"]
    assert state.gradient_step == 4
    assert optax.tree_utils.tree_get(state, "refreshes") == 2
    updates = after[6]["updates"]
    assert not jnp.any(updates["out"])
    assert jnp.any(updates["hidden"])


def test_recipe_for_adam_projects_in_its_coordinates():
    names = next(names for names in run("docs/recipes.md")[0] if "adam_state" in names)
    scale = names["bulk_sgd"].adam_preconditioner(names["adam_state"])
    # The Hessian is diagonal, and so is the preconditioned one.
    expected = 1e-2 * max(100 / scale[0], 1 / scale[1])
    assert float(names["sharpness"]) == pytest.approx(float(expected), rel=1e-2)
    assert int(optax.tree_utils.tree_get(names["state"], "failed_refreshes")) == 0


def test_analysis_of_any_training():
    after, printed = run("docs/analysis.md")
    names = after[-1]
    assert [result["name"] for result in names["results"]] == [
        "step 0",
        "step 1",
        "step 2",
    ]
    top = names["results"][0]["eigenvalues"]
    np.testing.assert_allclose(names["top"].eigenvalues, top[:2], rtol=1e-3)
    assert names["density"].shape == (200,)
    assert names["plane"].shape == (11, 11)
    area = np.trapezoid(names["density"], names["grid"])
    assert area == pytest.approx(1, abs=0.01)
    for line in ("['hidden/w', 'out/w']", "['hid', 'out']"):
        assert line in printed
    # Every key of a point is in the table, and none that is not there.
    text = (ROOT / "docs/analysis.md").read_text("utf-8")
    table = text.split("| key of a point | |")[1].split("\n\n")[0]
    documented = re.findall(
        r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.M))
    )
    assert sorted(documented) == sorted(names["results"][0])


def test_notebook_says_what_it_stored():
    matplotlib.use("agg")
    after, printed = run(NOTEBOOK)
    curves = {name: curve[-1] for name, curve in after[-1]["curves"].items()}
    fork = after[-1]["losses"][-1]
    fall = {name: float((fork - last) / fork) for name, last in curves.items()}
    assert abs(fall["Dom-SGD"]) < 0.1
    assert fall["Bulk-SGD"] > 0.9 * fall["SGD"] > 0.1
    assert fall["(½, 2)"] > 1.2 * fall["SGD"]
    cells = json.loads((ROOT / NOTEBOOK).read_text("utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    stored = "".join("".join(output.get("text", ())) for output in outputs)
    numbers = lambda text: [float(x) for x in re.findall(r"\d+\.\d+", text)]
    assert numbers(stored) == pytest.approx(numbers(printed), rel=0.1)


def test_recipe_of_kernels_and_of_the_probe():
    after, printed = run("docs/recipes.md")
    assert "[2.]" in printed  # tanh² = x² − ..., whose second derivative is 2 at 0
    assert "value_fn changes from call to call" in printed
    state = after[-2]["tx"].init(jnp.ones(4))
    assert state.subspace.eigenvalues.shape == (1,)
