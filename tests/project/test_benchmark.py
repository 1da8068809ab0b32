"""The benchmark on a toy: its output, our own numbers, what it does not let pass."""

import json
import re

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT

import bulk_sgd


@pytest.fixture(scope="module")
def scripts():
    """Lets the scripts be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        yield


@pytest.fixture(scope="module")
def problem(scripts):
    import benchmark_common

    return benchmark_common.problem(quick=True)


def run(folder, only):
    import benchmark

    options = ["--quick", "--repeats=1", "--batch_sizes=10", f"--only={only}"]
    file = folder / "results.json"
    if "peers" in only:
        options.append(f"--figure={folder / 'figure.png'}")
    benchmark.main([*options, f"--json={file}"])
    return json.loads(file.read_text())


@pytest.mark.slow
def test_tables_json_and_figure(scripts, tmp_path, capsys):
    import benchmark_peers

    results = run(tmp_path, "eigenpairs,peers")
    printed = capsys.readouterr().out
    peers = results["peers"]
    assert re.match(r"mlp of 12,\d{3} parameters on 300 images .* 60 steps", printed)
    for name in ("eigenpairs", "peers", *results["eigenpairs"], *peers):
        assert name in printed
    for name in benchmark_peers.PEERS:
        assert (name in peers) != (f"{name} skipped: no module" in printed)
    assert "scipy eigsh on a JAX matvec" in peers  # scipy is there for the tests
    assert results["versions"]["scipy"] in printed
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")

    ours = peers["bulk_sgd"]
    assert ours["over ours"] == 1
    assert results["eigenpairs"]["matvecs from a random start"] == ours["matvecs"]
    for row in peers.values():
        assert row["matvecs"] >= 10
        assert row["residual/λ_1"] <= 1e-3
        assert row["eigenvalue error"] <= 1e-3
        assert row["seconds"] > 0
    assert ours["matvecs"] <= 60


@pytest.mark.parametrize("flag", ["--repeats=0", "--batch_sizes=50,0", "--repeats=x"])
def test_what_cannot_be_measured_is_refused(scripts, capsys, flag):
    import benchmark

    with pytest.raises(SystemExit):
        benchmark.main([flag])
    value = flag.replace(",", "=").split("=")[-1]
    assert f"'{value}' must be an integer, at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_steps_and_training_loop(scripts, tmp_path):
    results = run(tmp_path, "training_loop,passes,steps")
    loop, rows = results["training_loop"], results["steps"]
    assert len(results["passes"]) == 6
    assert results["passes"]["gradient, batch of 50"]["over a gradient"] == 1
    assert min(row["ms"] for row in results["passes"].values()) > 0
    assert loop["relative difference of their parameters"] < 1e-5
    assert len(rows) == 16
    assert rows["batch 10: SGD"]["over SGD"] == 1
    # Ten products cost more than one, and one more than none, on any machine.
    cost = {name.split(": ")[1]: row["ms a step"] for name, row in rows.items()}
    one, ten = "Bulk-SGD, streaming()", "Bulk-SGD, streaming(columns=0)"
    assert cost["SGD"] < cost[one] < cost[ten]


@pytest.mark.slow
def test_steps_of_the_decoder(scripts, capsys):
    import benchmark

    benchmark.main(["--quick", "--repeats=1", "--only=steps", "--network=decoder"])
    printed = capsys.readouterr().out
    assert "on 150 pieces of 32 bytes, 20 steps" in printed
    assert "batch 32: Bulk-SGD, streaming(factors=8, every=16)" in printed


@pytest.mark.slow
def test_other_networks_and_sizes(scripts, tmp_path, capsys):
    results = run(tmp_path, "networks,scaling")
    assert "CNN skipped: --cifar names no data" in capsys.readouterr().out
    networks, sizes = results["networks"], results["scaling"]
    assert networks["decoder: bulk_sgd"]["over ours"] == 1
    assert "decoder: scipy eigsh on a JAX matvec" in networks
    one, two = sizes.values()
    assert one["parameters"] == two["parameters"] == pytest.approx(10**4, rel=0.1)
    assert 0 < one["matvecs"] < two["matvecs"]
    assert one["vectors"] < two["vectors"]
    assert min(one["seconds"], one["over matvecs"]) > 0


@pytest.mark.slow
def test_compilation_is_timed_without_the_cache(scripts, tmp_path):
    import benchmark_compile

    found = [run(tmp_path, "compile")["compile"]]
    events = []
    listen = lambda event, **_: events.append(event)
    jax.monitoring.register_event_listener(listen)
    try:  # the second time, the cache has what it was given the first time
        found.append(benchmark_compile.measure(quick=True))
        measured = tuple(events)
        for _ in range(2):  # the listener hears a hit
            jax.clear_caches()
            jax.jit(lambda x: x + 41)(1.0)
    finally:
        jax.monitoring.unregister_event_listener(listen)
    hit = "/jax/compilation_cache/cache_hits"
    assert hit in events
    assert hit not in measured
    for rows in found:
        assert len(rows) == 5  # four solvers and the floor
        assert all(name.startswith("4 arrays, ") for name in rows)
        assert min(row["operations"] for row in rows.values()) > 10
        floor, *solvers = (row["processor seconds"] for row in rows.values())
        assert min(solvers) > 4 * floor


@pytest.mark.slow
def test_an_absent_peer_is_named(problem, capsys, monkeypatch):
    import benchmark_peers

    def absent(problem):
        raise ModuleNotFoundError("No module named 'nowhere'", name="nowhere")

    monkeypatch.setattr(benchmark_peers, "PEERS", {"a peer": absent})
    assert list(benchmark_peers.measure(problem, repeats=1)) == ["bulk_sgd"]
    assert "a peer skipped: no module nowhere. To install" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["random vectors", "a missing pair", "none"])
def test_every_contestant_has_to_find_the_eigenpairs(problem, monkeypatch, fault):
    """Residuals see wrong vectors; the eigenvalues, that none is missing."""
    import benchmark_contestants
    import benchmark_peers

    def solve(budget):
        pairs = bulk_sgd.top_eigenpairs(problem.matvec, problem.start, 11, 1e-4)
        kept = [0, *range(2, 11)] if fault == "a missing pair" else range(10)
        vectors = jax.tree.map(lambda x: x[jnp.array(kept)], pairs.eigenvectors)
        if fault == "random vectors":
            vectors = jax.tree.map(lambda x: jnp.stack([x] * 10), problem.start)
        return pairs.eigenvalues[jnp.array(kept)], vectors, pairs.num_matvecs

    peer = benchmark_contestants.Contestant(solve, "length", (5, 6))
    monkeypatch.setattr(benchmark_peers, "PEERS", {"a peer": lambda problem: peer})
    if fault == "none":
        rows = benchmark_peers.measure(problem, repeats=1)
        assert rows["a peer"]["setting"] == "length 5"
    else:
        with pytest.raises(RuntimeError, match="a peer with length 6 has a residual"):
            benchmark_peers.measure(problem, repeats=1)


@pytest.mark.slow
@pytest.mark.parametrize("near", [0, 2, 3, 9])
def test_the_smallest_budget_that_reaches_the_quality(problem, near):
    import benchmark_contestants
    import benchmark_peers

    budgets = (1, 1e-1, 1e-3, 1e-5)
    contestant = benchmark_contestants.ours(problem)._replace(budgets=budgets)
    reference = benchmark_peers._reference(problem)
    found = benchmark_peers._smallest_budget(contestant, problem, reference, near)
    assert found == 1e-3


def test_ratios_are_taken_within_a_round(scripts):
    import benchmark_common

    assert benchmark_common.median_ratio([2, 9, 40], [1, 3, 40]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only=peers,speed"], "'peers,speed' is not among eigenpairs,"),
        (["--only=steps", "--figure=x.png"], "--figure shows the peers"),
        (["--only=sweep", "--network=decoder"], "decoder is for --only=steps"),
    ],
)
def test_wrong_options(scripts, options, message, capsys):
    import benchmark

    with pytest.raises(SystemExit):
        benchmark.main(options)
    assert message in capsys.readouterr().err
