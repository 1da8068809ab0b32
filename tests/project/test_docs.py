"""The code of the documentation runs as it stands, and does what the pages say."""

import ast
import contextlib
import functools
import io
import json
import math
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from four_devices import python
from jax.flatten_util import ravel_pytree
from paths import ROOT

import bulk_sgd
from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.data import sources
from bulk_sgd.lab.sweep import grid
from bulk_sgd.linalg import basis

NOTEBOOK = "docs/notebooks/first_subspace.ipynb"
EVERY_PAGE = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
)
LONG = (
    "docs/analysis.md",
    "docs/devices.md",
    "docs/getting_started.md",
    "docs/own_model.md",
    "docs/recipes.md",
)
PAGES = [page for page in EVERY_PAGE if "```" in (ROOT / page).read_text("utf-8")]
# What a reader has at hand where a page shows a fragment.
AT_HAND = {
    "docs/solvers.md": """
import jax, jax.numpy as jnp, optax, bulk_sgd
batch_loss = part_loss = lambda params: jnp.sum(params**4)
params = jnp.ones(12)
grads = jax.grad(batch_loss)(params)
state = optax.chain(
    optax.adam(1e-3), bulk_sgd.scale_by_subspace(10, solver=bulk_sgd.streaming())
).init(params)
""",
}


def blocks(page, language):
    text = (ROOT / page).read_text("utf-8")
    if page.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        return ["".join(x["source"]) for x in cells if x["cell_type"] == "code"]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@functools.cache
def run(page):
    """What is defined after each Python block of a page, and all that they print."""
    names, after, printed = {}, [], io.StringIO()
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed):
        os.chdir(folder)
        try:
            exec(AT_HAND.get(page, ""), names)
            for block in blocks(page, "python"):
                exec(compile(block, page, "exec"), names)
                after.append(dict(names))
        finally:
            os.chdir(here)
    return after, printed.getvalue()


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow if p in LONG else []) for p in PAGES],
)
def test_python_blocks_run(page):
    after, _ = run(page)
    # However a page writes it: none is left out.
    text = (ROOT / page).read_text("utf-8")
    assert len(after) == len(re.findall(r"(```|~~~)[ {.]*py", text, re.IGNORECASE))


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


def test_readme_learns_by_mini_batches():
    (names,), printed = run("README.md")
    first, last = map(float, re.findall(r"loss (\S+)", printed))
    assert last < 0.1 * first
    get = lambda name: optax.tree_utils.tree_get(names["state"], name)
    assert get("total_matvecs") == 100  # one per step
    assert get("failed_refreshes") == 0
    assert jnp.all(get("eigenvalues") > 0)


def test_config_of_getting_started_is_valid():
    names = {}
    exec(blocks("docs/getting_started.md", "python")[-1], names)
    config_lib.validate(names["get_config"]())


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_ways_to_use_several_devices_agree():
    names = run("docs/devices.md")[0][-1]
    np.testing.assert_allclose(names["by_shard_map"], names["by_jit"], rtol=1e-5)
    np.testing.assert_allclose(names["by_pmap"][0], names["by_jit"], rtol=1e-5)


@pytest.mark.slow
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


@pytest.fixture
def own_data(tmp_path):
    """The first names of the page on data, and the archive that it writes."""
    names = dict(run("docs/own_data.md")[0][0])
    source = blocks("docs/own_data.md", "python")[1]
    exec(source.replace("my_data.npz", str(tmp_path / "my_data.npz")), names)
    return names, tmp_path / "my_data.npz"


def test_own_data_are_learned_and_load(own_data):
    names, path = own_data
    assert names["data"](names["params"]) < 0.5 < math.log(2)
    assert optax.tree_utils.tree_get(names["state"], "refreshes") == 2
    fields = config_lib.default().data
    fields.name, fields.normalization = str(path), "standard"
    loaded = sources.load(fields)
    assert loaded.train_inputs.shape == (150, 8)
    np.testing.assert_array_equal(loaded.test_targets, names["labels"][150:])


@pytest.mark.slow
def test_own_data_train_with_the_command_of_the_page(own_data):
    (command,) = blocks("docs/own_data.md", "bash")
    command = command.replace("\\\n", "").replace("my_data.npz", str(own_data[1]))
    command = command.replace("runs/mine", str(own_data[1].parent / "run"))
    _, *arguments = shlex.split(command)
    smaller = ["--config.num_steps=20", "--config.switch.step=10"]
    done = subprocess.run(
        [sys.executable, *arguments, *smaller],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout


def test_own_solvers_find_what_they_say():
    after, printed = run("docs/own_solver.md")
    lanczos, recent = map(float, printed.split())
    assert lanczos > 0.99
    assert recent < 0.5
    names = after[-1]
    params, exact = names["params"], names["exact"]
    matvec = bulk_sgd.hessian(names["data"], params)
    found, _ = names["dense"]().solve(matvec, exact, (), params, None)
    for row, eigenvalue in enumerate(found.eigenvalues):
        vector = basis.row(found.eigenvectors, row)
        residual = basis.subtract(matvec(vector), basis.scale(eigenvalue, vector))
        assert basis.norm(residual) < 1e-5  # rounding of float32
    assert found.eigenvalues[0] > found.eigenvalues[1]
    solver = names["recent_updates"]()
    history = solver.init(params, 2)
    keys = jax.random.split(jax.random.key(0), 3)
    updates = [basis.random_normal(key, params) for key in keys]
    for update in updates:
        recent, history = solver.solve(None, found, history, update, None)
    alignments = [float(recent.alignment(update)) for update in updates]
    assert alignments[0] < 0.9
    np.testing.assert_allclose(alignments[1:], 1, rtol=1e-5)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_recipe_for_adam_projects_in_its_coordinates():
    names = next(names for names in run("docs/recipes.md")[0] if "adam_state" in names)
    scale = names["bulk_sgd"].adam_preconditioner(names["adam_state"])
    # The Hessian is diagonal, and so is the preconditioned one.
    expected = 1e-2 * max(100 / scale[0], 1 / scale[1])
    assert float(names["sharpness"]) == pytest.approx(float(expected), rel=1e-2)
    assert int(optax.tree_utils.tree_get(names["state"], "failed_refreshes")) == 0


def test_count_is_kept_by_others_too():
    tx = optax.chain(optax.adam(1e-2), bulk_sgd.project_bulk(1))
    state = tx.init(np.ones(3, np.float32))
    with pytest.raises(KeyError):
        optax.tree_utils.tree_get(state, "count")


@pytest.mark.slow
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


def test_sweep_of_the_study_is_valid():
    names = run("docs/study.md")[0][0]
    cells = names["get_sweep"]()
    assert len(cells) == 2 * 2 * 3
    base = names["get_config"]()
    assert {grid.apply(base, cell).subspace.rank for cell in cells} == {5, 10}


@pytest.mark.slow
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


@pytest.mark.slow
def test_recipe_of_kernels_and_of_the_probe():
    after, printed = run("docs/recipes.md")
    assert "[2.]" in printed  # tanh² = x² − ..., whose second derivative is 2 at 0
    assert "value_fn changes from call to call" in printed
    state = after[-2]["tx"].init(jnp.ones(4))
    assert state.subspace.eigenvalues.shape == (1,)
