"""The pages of the documentation, and what their Python blocks define and print."""

import contextlib
import functools
import io
import json
import os
import re
import tempfile

from paths import ROOT

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


def check(page):
    """Runs the Python blocks of a page, however it writes them: none is left out."""
    after, _ = run(page)
    text = (ROOT / page).read_text("utf-8")
    assert len(after) == len(re.findall(r"(```|~~~)[ {.]*py", text, re.IGNORECASE))
