"""Meshes and layouts: what they refuse, and four devices against one."""

import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from collectives import collectives
from four_devices import RANK, WINDOW, python
from helpers import abstract_mesh
from ml_collections import ConfigDict

from bulk_sgd.lab import config, validation
from bulk_sgd.lab.data.rows import LazyRows
from bulk_sgd.lab.devices import sharding

# Rows of the bases that a step ends with and works with: of a solve for the rank, for
# one more, for half as many in a block, and of a window.
ROW_COUNTS = {3, 6, 7, *(2 * k + 11 for k in (3, 6, 7)), WINDOW}


@pytest.fixture(scope="module")
def runs():
    """What sharded_runs.py found."""
    result = python("tests/sharded_runs.py")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data", "fsdp", "both", "data, microbatches"])
@pytest.mark.parametrize("name", ["losses", "alignments", "eigenvalues"])
def test_four_devices_train_like_one(runs, mesh, name):
    one, four = runs["training"]["one"], runs["training"][mesh]
    assert one["failed"] == four["failed"] == 0
    assert len(one["losses"]) == 16
    np.testing.assert_allclose(four[name], one[name], rtol=1e-5)


@pytest.mark.slow
def test_state_is_born_and_stays_split_over_fsdp(runs):
    one = runs["training"]["one"]
    parts = {"data": 1, "fsdp": 4, "both": 2}
    for mesh, part in parts.items():
        four = runs["training"][mesh]
        for name in ("params", "momentum", "basis", "basis after"):
            # The bias of 10 classes has no axis that 4 divides.
            assert one[name] / part <= four[name] <= 1.01 * one[name] / part
        assert four["examples"] == one["examples"] / 4
    # All of the program's arguments, on one device, as compiled.
    fsdp = runs["training"]["fsdp"]
    assert fsdp["argument_bytes"] <= 0.27 * one["argument_bytes"]


@pytest.mark.slow
def test_every_solver_keeps_its_vectors_split(runs):
    one = runs["training"]["one"]
    rows = {"update_pca": WINDOW, "streaming_pca": 1}
    for name, run in runs["solvers"].items():
        assert run["failed"] == 0
        assert np.isfinite(run["losses"]).all()
        assert run["basis after"] <= 1.01 * one["basis"] / 4
        # The window and the last update, and some numbers.
        kept = rows.get(name, 0) * one["params"] / 4
        assert run["solver state"] <= 1.01 * kept + (WINDOW) ** 2 + 2


@pytest.mark.slow
def test_factors_are_split_and_give_the_same_run(runs):
    one, *others = (runs["factors"][mesh] for mesh in ("one", "fsdp", "both"))
    # Frames of 784 x 20 and 20 x 10, their coordinates, and two biases.
    whole = 2 * (784 + 20) + RANK * (2 * (20 + 10) + 20 + 10)
    assert one["basis"] == one["basis after"] == whole
    for run, parts in zip(others, (4, 2)):
        assert run["failed"] == 0
        # Sixteen steps of float32, in sums of another order.
        np.testing.assert_allclose(run["losses"], one["losses"], rtol=1e-4)
        # Coordinates are along the axes that are not split, and whole.
        biases = 20 + 10 * (10 % parts == 0)
        split = 2 * (784 + 20) + RANK * biases
        expected = whole - split + split / parts
        assert run["basis after"] <= run["basis"] == pytest.approx(expected, rel=0.01)
        sizes = [math.prod(shape) for arrays in run["sent"] for shape in arrays]
        # Products, and coordinates along such an axis, but no dense basis.
        assert max(sizes) <= 784 * 20


@pytest.mark.slow
def test_memory_of_a_solve_shrinks_with_fsdp(runs):
    solves = runs["solve"]
    assert solves["fsdp"]["temporary_bytes"] <= 0.3 * solves["one"]["temporary_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["training", "solvers", "solve", "step"])
def test_no_collective_carries_a_basis(runs, kind):
    for mesh, run in runs[kind].items():
        shapes = [shape for arrays in run["sent"] for shape in arrays]
        assert bool(shapes) is (mesh != "one")
        # No parameter or datum has an axis of these lengths, and coefficients of
        # the rows have no other axis.
        for shape in shapes:
            if ROW_COUNTS & set(shape):
                assert len(shape) == 1 or set(shape) <= ROW_COUNTS | {1}, mesh


@pytest.mark.slow
def test_linear_algebra_sends_inner_products_alone(runs):
    """Whatever the axis that a leaf is split along."""
    for operations in runs["algebra"]:
        for name, arrays in operations.items():
            shapes = [shape for part in arrays for shape in part]
            assert shapes, name
            assert all(set(shape) <= {1, 5} for shape in shapes), (name, shapes)


@pytest.mark.slow
def test_replicated_parameters_take_one_collective_per_product(runs):
    # The loop body holds it once; the solve needs no other.
    assert len(runs["solve"]["data"]["sent"]) == 1
    # With microbatches: one in the loop over them, and one for the gradient.
    assert len(runs["step"]["data, microbatches"]["sent"]) == 2
    # In groups: one for all microbatches, after the loop.
    products = runs["product"]
    assert [len(products[name]["sent"]) for name in products] == [1, 1, 1]
    assert "main" not in products["data"]["places"][0]
    assert "main" in products["data, groups"]["places"][0]
    assert "main" in products["data, groups, remainder"]["places"][0]
    # Nor do they take memory of their own.
    bytes_ = {name: products[name]["temporary_bytes"] for name in products}
    assert bytes_["data, groups"] <= bytes_["data"]


@pytest.mark.slow
def test_basis_is_split_whatever_the_solver(runs):
    assert runs["dense"] == 3 * 8 / 4


def mesh_of(data, fsdp, num_devices=4, num_processes=1):
    class Device:
        def __init__(self, index):
            self.process_index = index * num_processes // num_devices

    config = ConfigDict({"data": data, "fsdp": fsdp})
    return sharding.make_mesh(config, [Device(i) for i in range(num_devices)])


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ((0, 0), r"sharding\.data and config\.sharding\.fsdp are both 0"),
        ((-1, 1), r"config\.sharding\.data is -1; it must be at least 0"),
        ((3, 1), r"data is 3 and config\.sharding\.fsdp is 1, .* divide .* devices, 4"),
        ((0, 3), r"data is 0 and config\.sharding\.fsdp is 3, .* divide .* devices, 4"),
        ((4, 2), r"data is 4 and config\.sharding\.fsdp is 2, .* divide .* devices, 4"),
        ((2, 1, 4, 2), r"a mesh of 2 devices; with several processes .* all 4"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(sizes, match):
    with pytest.raises(ValueError, match=match):
        mesh_of(*sizes)


def layout_of(data, fsdp):
    return sharding.Layout(abstract_mesh(data, fsdp))


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("batch_size", 50, "50 examples; it must be a multiple of 4"),
        ("data.num_train", 4998, "4998 training examples"),
        ("data.num_test", 998, "998 test examples"),
        ("subspace.subset_size", 502, "502 examples"),
        ("microbatch_size", 6, "6 examples"),
    ],
)
def test_what_four_devices_cannot_share_is_named(field, value, what):
    fields, targets = config.default(), np.zeros(5000)
    fields.batch_size, fields.subspace.data = 52, "subset"
    fields.data.num_train, fields.data.num_test = 5000, 1000
    fields.update_from_flattened_dict({field: value})
    dataset = SimpleNamespace(
        train_targets=targets[: fields.data.num_train],
        test_targets=targets[: fields.data.num_test],
    )
    with pytest.raises(ValueError, match=f"^config.{field} gives {what}"):
        validation.check_data(fields, dataset, abstract_mesh(2, 2))


def test_binary_refuses_what_four_devices_cannot_share(tmp_path):
    result = python(
        *("-m", "bulk_sgd.main", "--config=configs/mnist_mlp.py:quick"),
        *(f"--workdir={tmp_path}/run", "--config.batch_size=50"),
    )
    assert result.returncode == 2
    assert "config.batch_size gives 50 examples; it must be a mul" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_training_sets_that_are_read_while_training_need_not_split():
    fields = config.default()
    fields.batch_size, fields.subspace.data = 52, "subset"
    mesh, targets = abstract_mesh(2, 2), np.zeros(5000)
    enough = SimpleNamespace(train_targets=targets[:4998], test_targets=targets[:1000])
    with pytest.raises(ValueError, match=r"data\.num_train gives 4998 training exampl"):
        validation.check_data(fields, enough, mesh)
    fields.data.streaming = True
    validation.check_data(fields, enough, mesh)
    few = SimpleNamespace(train_targets=targets[:4998], test_targets=targets[:998])
    with pytest.raises(ValueError, match=r"data\.num_test gives 998 test examples"):
        validation.check_data(fields, few, mesh)
    fields.subspace.subset_size = 250
    with pytest.raises(ValueError, match=r"subset_size gives 250 examples; it must be"):
        validation.check_data(fields, enough, mesh)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((8, 6), ("fsdp",)),
        ((6, 8), (None, "fsdp")),
        ((4, 8), (None, "fsdp")),
        ((8, 8), ("fsdp",)),
        ((9, 4), (None, "fsdp")),
        ((3, 5), ()),
        ((), ()),
    ],
)
def test_largest_divisible_axis_is_split(shape, spec):
    like = jax.ShapeDtypeStruct(shape, np.float32)
    assert tuple(layout_of(2, 4).parameters(like).spec) == spec
    assert tuple(layout_of(4, 1).parameters(like).spec) == ()


def test_groups_are_the_devices_where_parameters_are_whole():
    assert (layout_of(4, 1).num_groups, layout_of(2, 2).num_groups) == (4, 1)


def test_fsdp_that_splits_no_large_parameter_is_refused():
    build = lambda: (None, {"kernel": np.ones((6, 9)), "bias": np.ones(8)})
    assert layout_of(4, 1).abstract(build)[1]["kernel"].shape == (6, 9)
    assert layout_of(4, 3).abstract(build)[1]["bias"].sharding.is_fully_replicated
    match = r"config\.sharding\.fsdp is 4, which divides no axis .* of shape \(6, 9\)"
    with pytest.raises(ValueError, match=match):
        layout_of(1, 4).abstract(build)


def test_each_device_reads_its_own_examples():
    read = []

    def rows(numbers):
        read.append(numbers)
        return numbers[:, None] * np.ones(2)

    layout = sharding.Layout(sharding.make_mesh(ConfigDict({"data": 1, "fsdp": 1})))
    array = LazyRows((6, 2), np.float64, rows)
    np.testing.assert_array_equal(layout.put_examples(array), rows(np.arange(6)))
    order = np.array([4, 1, 1])
    found = layout.put_examples(array, order)
    np.testing.assert_array_equal(found, rows(order))
    assert [len(numbers) for numbers in read] == [6, 6, 3, 3]


def test_collectives_are_read_from_the_text_of_a_program():
    text = """\
%body (p: f32[8]) -> f32[8] {
  %a = (f32[3,2]{1,0}, bf16[]) all-reduce(%x, %y), channel_id=1
  %b = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), channel_id=2
  %c = f32[8]{0} all-gather-done(%b)
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %e = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x)
  ROOT %d = s32[4]{0:T(128)S(1)} reduce-scatter(f32[8] %x), dimensions={0}
}
"""
    first, second, permute, third = collectives(text)
    assert first == ("all-reduce", ((3, 2), ()), 26, "body")
    assert second == ("all-gather", ((8,),), 32, "body")
    assert permute[:3] == ("collective-permute", ((4,),), 16)
    assert third == ("reduce-scatter", ((4,),), 16, "main")
    assert (first.largest, second.largest) == (6, 8)
