"""Settings and fixtures of all tests."""

import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
# pytest's importlib mode adds no path of its own, and tests share helpers.py.
sys.path.insert(0, str(ROOT / "tests"))

jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Drops the programs of a module at its end.

    Every loaded program keeps memory maps, of which a process may have some 65,000:
    beyond, XLA crashes. What a later module needs comes from the cache on disk.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Runs the test with float64 enabled."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict_ranks():
    """Forbids silent broadcasting between arrays of different ranks."""
    with jax.numpy_rank_promotion("raise"):
        yield
