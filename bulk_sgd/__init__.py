"""Top-k Hessian eigenspaces in JAX as optax transforms.

Train along the sharp (dominant) and flat (bulk) directions of a loss: Zakarin and
Singh, *Accelerating Neural Network Training Along Sharp and Flat Directions*,
arXiv 2505.11972. Where to start:

- transforms: `scale_by_subspace` scales the two parts of an update;
- curvature: `hessian` gives products, `top_eigenpairs` gives eigenpairs;
- solvers: `streaming` and `lanczos` keep the subspace of a transform up to date;
- measures: `energies` and `spectral_density` describe a curvature.
"""

from bulk_sgd.curvature.determinism import check_deterministic
from bulk_sgd.curvature.hessian import functional_hessian, gauss_newton, hessian
from bulk_sgd.curvature.kronecker import (
    Kronecker,
    eigenbasis_preconditioner,
    kronecker_preconditioner,
)
from bulk_sgd.curvature.objective import Objective
from bulk_sgd.curvature.operators import sharded
from bulk_sgd.curvature.optimizer_states import (
    adam_preconditioner,
    muon_preconditioner,
)
from bulk_sgd.curvature.preconditioning import preconditioned
from bulk_sgd.curvature.shared_pass import value_grad_and_matvec
from bulk_sgd.linalg.factors import Factored
from bulk_sgd.solvers.adaptive import AdaptiveState, adaptive
from bulk_sgd.solvers.blockwise import blockwise
from bulk_sgd.solvers.drift import on_drift
from bulk_sgd.solvers.factored_oja import FactoredStreamingState
from bulk_sgd.solvers.factored_power import FactoredPowerState
from bulk_sgd.solvers.krylov import KrylovState, krylov_filter
from bulk_sgd.solvers.lanczos import lanczos, top_eigenpairs
from bulk_sgd.solvers.power import power
from bulk_sgd.solvers.solver import Solver
from bulk_sgd.solvers.streaming import StreamingState, streaming
from bulk_sgd.solvers.streaming_pca import StreamingPCAState, streaming_pca
from bulk_sgd.solvers.subspace import Rows, Subspace
from bulk_sgd.solvers.update_pca import UpdatePCAState, update_pca
from bulk_sgd.spectra.along_step import (
    StepMeasures,
    critical_sharpness,
    step_measures,
)
from bulk_sgd.spectra.block_eigenpairs import block_eigenpairs
from bulk_sgd.spectra.density import SpectralDensity, spectral_density
from bulk_sgd.spectra.eigenvectors import Displacement, displacement, localization
from bulk_sgd.spectra.energies import Energies, Estimate, energies, trace
from bulk_sgd.spectra.loss_slice import loss_slice
from bulk_sgd.spectra.rank_profile import RankProfile, rank_profile
from bulk_sgd.spectra.subsampling import SubsamplingError, subsampling_error
from bulk_sgd.transforms.accelerated import AcceleratedState, accelerated
from bulk_sgd.transforms.aliases import (
    bulk_sgd,
    dom_sgd,
    interpolated_sgd,
    path_scales,
    project_bulk,
    project_dominant,
)
from bulk_sgd.transforms.scale_by_subspace import (
    ScaleBySubspaceState,
    scale_by_subspace,
)
from bulk_sgd.transforms.scales import spectral_filter
from bulk_sgd.transforms.switch import Switch

__version__ = "0.2.0"

__all__ = [
    "AcceleratedState",
    "AdaptiveState",
    "Displacement",
    "Energies",
    "Estimate",
    "Factored",
    "FactoredPowerState",
    "FactoredStreamingState",
    "Kronecker",
    "KrylovState",
    "Objective",
    "RankProfile",
    "Rows",
    "ScaleBySubspaceState",
    "Solver",
    "SpectralDensity",
    "StepMeasures",
    "StreamingPCAState",
    "StreamingState",
    "SubsamplingError",
    "Subspace",
    "Switch",
    "UpdatePCAState",
    "accelerated",
    "adam_preconditioner",
    "adaptive",
    "block_eigenpairs",
    "blockwise",
    "bulk_sgd",
    "check_deterministic",
    "critical_sharpness",
    "displacement",
    "dom_sgd",
    "eigenbasis_preconditioner",
    "energies",
    "functional_hessian",
    "gauss_newton",
    "hessian",
    "interpolated_sgd",
    "kronecker_preconditioner",
    "krylov_filter",
    "lanczos",
    "localization",
    "loss_slice",
    "muon_preconditioner",
    "on_drift",
    "path_scales",
    "power",
    "preconditioned",
    "project_bulk",
    "project_dominant",
    "rank_profile",
    "scale_by_subspace",
    "sharded",
    "spectral_density",
    "spectral_filter",
    "step_measures",
    "streaming",
    "streaming_pca",
    "subsampling_error",
    "top_eigenpairs",
    "trace",
    "update_pca",
    "value_grad_and_matvec",
]
