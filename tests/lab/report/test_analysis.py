"""An analysis of points: its numbers, its files, its page."""

import dataclasses
import signal

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import dense, flat, top

import bulk_sgd
from bulk_sgd.curvature.hessian import CURVATURES
from bulk_sgd.lab.analysis import analyze as analyze_module
from bulk_sgd.lab.analysis import figures, report, store
from bulk_sgd.lab.analysis.analyze import analyze
from bulk_sgd.lab.analysis.point import Point, Settings
from bulk_sgd.lab.devices import signals
from bulk_sgd.lab.files import metrics

SMALL = Settings(
    rank=2, tol=1e-8, density_probes=2, density_steps=26, trace_probes=2, block_rank=1,
    slice_points=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def measured():
    """An objective in float64, three points of it, and their measurements."""
    with jax.enable_x64(True):
        objective, params = helpers.objective(
            helpers.mlp(), helpers.squared_error, dtype=jnp.float64
        )
        moved = [jax.tree.map(lambda x, s=s: x * s, params) for s in (1, 1.1, 1.3)]
        update = jax.tree.map(jnp.ones_like, params)
        points = [
            Point("a", moved[0], "prefix", 10, update),
            Point("b", moved[1], "sgd", 20, update),
            Point("c", moved[2], "other", 30, update),
        ]
        return objective, points, analyze(points, objective, settings=SMALL)


@pytest.mark.slow
def test_spectra_are_those_of_dense_matrices(x64, measured):
    objective, points, results = measured
    for point, result in zip(points, results):
        matrix = dense(bulk_sgd.hessian(objective, point.params), point.params)
        values, subspace = top(matrix, 2)
        np.testing.assert_allclose(result["eigenvalues"], values, rtol=1e-6)
        assert result["converged"]
        assert result["loss"] == pytest.approx(float(objective(point.params)))
        assert (result["name"], result["step"]) == (point.name, point.step)
        # As many steps as dimensions.
        nodes = np.array(result["density"]["nodes"])
        assert nodes.max() == pytest.approx(values[0], rel=1e-6)
        layer = result["blocks"]["hidden"]
        block = top(matrix[:16, :16], 1)[0]
        np.testing.assert_allclose(layer["eigenvalues"], block, rtol=1e-6)
        assert layer["num_params"] == 16
        found = result["rank_profile"]
        whole, leaves = np.array(found["whole"]), found["leaves"]
        assert leaves.keys() == {"hidden/w", "out/w"}
        np.testing.assert_allclose(whole[:, found["ranks"].index(4) :], 1, rtol=1e-12)
        vectors = np.linalg.eigh(matrix)[1][:, :-3:-1].T
        parts = vectors[:, 4:16].reshape(2, 3, 4)  # after the biases
        shares = np.linalg.svd(parts, compute_uv=False) ** 2
        first = shares[:, 0] / shares.sum(axis=1)
        np.testing.assert_allclose(np.array(leaves["hidden/w"])[:, 0], first, rtol=1e-5)
        mass = [block["mass"] for block in result["blocks"].values()]
        np.testing.assert_allclose(np.sum(mass, axis=0), 1, rtol=1e-9)
        for name, make in CURVATURES.items():
            got = result["energies"][name]
            part = dense(make(objective, point.params), point.params)
            inside = np.trace(subspace @ part @ subspace)
            assert got["trace_dominant"] == pytest.approx(inside, rel=1e-5)
            assert got["trace_error"] > 0


def test_change_is_that_between_the_points(x64, measured):
    objective, points, results = measured
    assert results[0]["change"] is None
    gradient = lambda point: flat(jax.grad(objective)(point.params))
    subspace = lambda point: top(
        dense(bulk_sgd.hessian(objective, point.params), point.params), 2
    )[1]
    start = points[0]
    chi = lambda p, v: np.linalg.norm(p @ v) / np.linalg.norm(v)
    alignment = results[0]["alignment"]
    assert alignment["update"] == pytest.approx(chi(subspace(start), np.ones(26)))
    assert alignment["gradient"] == pytest.approx(chi(subspace(start), gradient(start)))
    # Both fork from the first path: the third is not compared with the second.
    for point, result in zip(points[1:], results[1:]):
        change = result["change"]
        assert change["since"] == "a"
        old, new = subspace(start), subspace(point)
        g, step = gradient(point), flat(point.params) - flat(start.params)
        assert change["overlap"] == pytest.approx(np.trace(old @ new) / 2, rel=1e-6)
        assert np.sum(np.square(change["cosines"])) == pytest.approx(
            2 * change["overlap"]
        )
        missed = np.linalg.norm((old - new) @ g) / np.linalg.norm(g)
        assert change["drift"] == pytest.approx(missed, rel=1e-5)
        assert change["distance"] == pytest.approx(np.linalg.norm(step))
        assert change["alignment"] == pytest.approx(chi(old, step), rel=1e-6)


def test_slices_go_along_and_across(x64, measured):
    results = measured[2]
    found, loss = results[0]["slices"], results[0]["loss"]
    sharpness = results[0]["eigenvalues"][0]
    assert found["radius"] == pytest.approx((2 * loss / sharpness) ** 0.5)
    assert {len(line) for line in found["lines"].values()} == {3}
    lines = found["lines"]
    assert list(lines) == ["dominant 1", "dominant 2", "bulk gradient", "bulk random"]
    # By second order the loss doubles at the edge along the sharpest direction.
    left, middle, right = lines["dominant 1"]
    assert middle == pytest.approx(loss)
    assert (left + right) / 2 - middle > 0.3 * loss
    plane = np.array(found["planes"]["dominant"])
    np.testing.assert_allclose(plane[:, 1], lines["dominant 1"])
    np.testing.assert_allclose(plane[1], lines["dominant 2"])
    across = np.array(found["planes"]["across"])
    np.testing.assert_allclose(across[1], lines["bulk gradient"])


def quartic(params):
    """H is 8 along a, and 12 b² along b."""
    return 4 * jnp.sum(params["a"] ** 2) + jnp.sum(params["b"] ** 4)


# One loss, one shape and one set of numbers: compiled once for all tests.
PLAIN = Settings(2, 1e-6, 2, 20, 2, 2, slice_points=0)


def quartic_at(a, b):
    return {"a": jnp.full(2, float(a)), "b": b * jnp.arange(1.0, 4)}


@pytest.mark.slow
def test_any_loss_and_pairs():
    points = [(f"p{i}", quartic_at(i, 1)) for i in range(2)]
    settings = dataclasses.replace(PLAIN, by=lambda path: path)
    first, second = analyze(iter(points), quartic, settings=settings)
    assert list(first["energies"]) == ["hessian"]
    assert first["blocks"]["a"]["eigenvalues"] == pytest.approx([8, 8])
    assert first["energies"]["hessian"]["trace_dominant"] == pytest.approx(156)
    assert "slices" not in first
    assert "update" not in first["alignment"]
    assert (second["step"], second["change"]["since"]) == (1, "p0")
    assert second["change"]["overlap"] == pytest.approx(
        1, abs=1e-5
    )  # rounding of float32


@pytest.mark.slow
def test_interrupted_it_goes_on(tmp_path, x64, measured, monkeypatch):
    objective, points, expected = measured

    def interrupted():
        yield from points[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze(interrupted(), objective, tmp_path, SMALL)
    calls = []
    examine = analyze_module.examine
    counted = lambda *args: calls.append(args[0].name) or examine(*args)
    monkeypatch.setattr(analyze_module, "examine", counted)
    results = analyze(points, objective, tmp_path, SMALL)
    assert calls == ["c"]
    times = lambda results: [{**r, "seconds": 0} for r in results]
    assert times(results) == times(expected)
    assert times(store.read(tmp_path)["points"]) == times(expected)
    # Without its predecessor a point is compared with another one.
    analyze([points[0], points[1], points[2]._replace(path="sgd")], objective,
            tmp_path, SMALL)  # fmt: skip
    assert calls == ["c", "c"]
    with pytest.raises(ValueError, match=r"other settings.* settings\.rank"):
        analyze(points, objective, tmp_path, Settings(rank=3))


@pytest.mark.slow
def test_points_of_other_parameters_or_runs_do_not_count(tmp_path):
    about = lambda seed: {"run": {"config": {"seed": seed}}}

    def found(*scales, seed=0):
        points = [(f"p{i}", quartic_at(1, scale)) for i, scale in enumerate(scales)]
        results = analyze(points, quartic, tmp_path, PLAIN, about=about(seed))
        return [r["eigenvalues"][0] for r in results], results[1]["change"]["distance"]

    first, distance = found(1, 2)
    assert first == pytest.approx([108, 432])
    assert distance == pytest.approx(14**0.5)
    again, nearer = found(1.5, 2)
    assert again == pytest.approx([243, 432])
    assert nearer == pytest.approx(14**0.5 / 2)  # the second point has not changed
    with pytest.raises(ValueError, match=r"differ in settings\.config\.seed; choose"):
        found(1.5, 2, seed=1)
    by_function = dataclasses.replace(PLAIN, by=lambda path: path)
    with pytest.raises(ValueError, match=r"settings\.by is a function; with a folder"):
        analyze([], quartic, tmp_path / "new", by_function)


@pytest.mark.slow
def test_no_key_is_used_twice():
    settings = Settings(1, 1e-3, 2, 3, 2, 1, slice_points=3)
    with jax.debug_key_reuse(True):  # JAX raises a KeyReuseError
        (found,) = analyze([("a", jnp.arange(1.0, 4))], lambda p: jnp.sum(p**4), None,
                           settings)  # fmt: skip
    # Every part that takes a key has been measured.
    assert {"eigenvalues", "energies", "density", "blocks", "slices"} <= found.keys()


def test_a_signal_ends_it_after_the_part_under_way(x64, measured, monkeypatch):
    objective, points, _ = measured
    monkeypatch.setattr(signals, "wanted", lambda: signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        analyze(points, objective, settings=SMALL)
    assert ended.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a", "a"], "two points are named 'a'"), (["a/b"], "must have no slash")],
)
def test_names_are_unlike_and_plain(tmp_path, names, message):
    points = [(name, quartic_at(1, 1)) for name in names]
    with pytest.raises(ValueError, match=message):
        analyze(points, quartic, tmp_path, PLAIN)


def test_what_is_not_finite_is_null():
    value = {"a": jnp.array([1.0, jnp.nan]), "b": [True, None, "x", jnp.inf]}
    assert metrics.plain(value) == {"a": [1.0, None], "b": [True, None, "x", None]}


def test_dashes_and_names_tell_paths_and_operators_apart(measured):
    for draw, names in (
        (figures.energy_figure, {"H", "G", "F"}),
        (figures.block_figure, {"hidden", "out"}),
    ):
        figure = draw(measured[2])
        (legend,) = figure.legends
        paths = [text.get_text() for text in legend.get_texts()]
        assert paths == ["prefix", "sgd", "other"]
        assert len({line.get_linestyle() for line in legend.get_lines()}) > 1
        assert names <= {text.get_text() for text in figure.axes[1].texts}


def test_page_of_points(tmp_path, measured):
    results = measured[2]
    store.Store(tmp_path, SMALL).finish(
        results, {"run": {"name": "A & B"}, "notes": ["Of a part < all."]}
    )
    page = report.write_report(tmp_path).read_text()
    assert "A &amp; B" in page
    assert "Of a part &lt; all." in page
    assert page.count("data:image/png;base64") == 7
    assert "http" not in page
    for name in report._FIGURES:
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    # One lone point of a plain loss, without slices.
    alone = {**results[0], "converged": False, "outliers": None}
    alone["energies"] = {"hessian": alone["energies"]["hessian"]}
    alone.pop("slices")
    store.Store(tmp_path, SMALL).finish([alone], {})
    page = report.write_report(tmp_path).read_text()
    assert "did not converge at a." in page
    assert page.count("data:image/png;base64") == 5
    with pytest.raises(FileNotFoundError, match=r"No analysis\.json"):
        report.write_report(tmp_path / "nowhere")
