"""Top-k Hessian eigenspaces in JAX as optax transforms.

Train along the sharp (dominant) and flat (bulk) directions of a loss: Zakarin and
Singh, *Accelerating Neural Network Training Along Sharp and Flat Directions*,
arXiv 2505.11972.
"""

from bulk_sgd.aliases import bulk_sgd, dom_sgd, interpolated_sgd, path_scales
from bulk_sgd.block_spectrum import block_eigenpairs
from bulk_sgd.curvature import functional_hessian, gauss_newton, hessian, sharded
from bulk_sgd.density import SpectralDensity, spectral_density
from bulk_sgd.determinism import check_deterministic
from bulk_sgd.objective import Objective
from bulk_sgd.preconditioning import adam_preconditioner, preconditioned
from bulk_sgd.slices import loss_slice
from bulk_sgd.solvers.adaptive import AdaptiveState, adaptive
from bulk_sgd.solvers.drift import on_drift
from bulk_sgd.solvers.lanczos import lanczos, top_eigenpairs
from bulk_sgd.solvers.power import power
from bulk_sgd.solvers.streaming import StreamingState, streaming
from bulk_sgd.spectrum import Estimate, trace
from bulk_sgd.subspace import Solver, Subspace
from bulk_sgd.switch import Switch
from bulk_sgd.transforms import (
    ScaleBySubspaceState,
    project_bulk,
    project_dominant,
    scale_by_subspace,
)

__version__ = "0.1.0"

__all__ = [
    "AdaptiveState",
    "Estimate",
    "Objective",
    "ScaleBySubspaceState",
    "Solver",
    "SpectralDensity",
    "StreamingState",
    "Subspace",
    "Switch",
    "adam_preconditioner",
    "adaptive",
    "block_eigenpairs",
    "bulk_sgd",
    "check_deterministic",
    "dom_sgd",
    "functional_hessian",
    "gauss_newton",
    "hessian",
    "interpolated_sgd",
    "lanczos",
    "loss_slice",
    "on_drift",
    "path_scales",
    "power",
    "preconditioned",
    "project_bulk",
    "project_dominant",
    "scale_by_subspace",
    "sharded",
    "spectral_density",
    "streaming",
    "top_eigenpairs",
    "trace",
]
