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
def programs(request):
    """Compiles the programs of a module in haste, and drops them at its end.

    Most of a test's time is LLVM's: as in JAX's own tests, it does without the costly
    passes, and only the rounding of loops differs. A module that is about rounding or
    speed has `OPTIMIZED = True`, and gets the programs that a user gets.

    Every loaded program keeps memory maps, of which a process may have some 65,000:
    beyond, XLA crashes. What a later module needs comes from the cache on disk.
    """
    optimized = getattr(request.module, "OPTIMIZED", False)
    jax.config.update("jax_disable_most_optimizations", not optimized)
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
