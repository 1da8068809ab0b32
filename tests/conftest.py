"""Settings and fixtures of all tests."""

import collections
import gc
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
# pytest's importlib mode adds no path of its own, and tests share helpers.
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

# In the environment, where processes that tests start find them too. Most of a test's
# time is compilation, for a speed that tests do not need. XLA ends a process that has a
# flag that it does not know.
if jax.__version_info__ < (0, 13):
    flags = (
        "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true "
        "--xla_cpu_parallel_codegen_split_count=1"
    )
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Nobody reads where in Python an operation of a program came from: a tenth of the time.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
jax.config.update("jax_traceback_in_locations_limit", 0)
# Another tenth went to looks for garbage among a million objects of JAX that stay.
gc.freeze()
gc.set_threshold(50_000, 50, 100)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.hookimpl(trylast=True)  # when those that are left out are gone
def pytest_collection_modifyitems(items):
    """Puts files that take long first, so that one worker is not left with the last."""
    weights = collections.Counter()
    for item in items:
        weights[item.path] += 20 if item.get_closest_marker("slow") else 1
    items.sort(key=lambda item: -weights[item.path])


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Drops the programs of a module at its end.

    Every loaded program keeps memory maps, of which a process may have some 65,000:
    beyond, XLA crashes. What a later module needs comes from the cache on disk.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def x64():
    """Runs the test with float64 enabled, in the threads of host callbacks as well."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def strict_ranks():
    """Forbids silent broadcasting between arrays of different ranks."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def data_file(tmp_path_factory):
    """24 examples of 5 numbers in 3 classes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = rng.standard_normal((24, 5)).astype(np.float32)
        arrays[f"y_{part}"] = np.arange(24) % 3
    path = tmp_path_factory.mktemp("data") / "numbers.npz"
    np.savez(path, **arrays)
    return str(path)
