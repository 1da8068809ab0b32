"""Top eigenpairs of a CNN and of a transformer, against the peers."""

import benchmark_peers
from benchmark_common import trained

from bulk_sgd.lab import config

# A solve by PyHessian takes minutes, and finding its setting takes many solves.
_PEERS = [name for name in benchmark_peers.PEERS if name != "PyHessian"]


def measure(repeats: int, cifar: str, quick: bool = False) -> dict[str, dict]:
    """One row per network and contestant, as in `benchmark_peers`.

    Args:
      repeats: number of rounds.
      cifar: an .npz with images of CIFAR-10; "" leaves the CNN out.
      quick: toys, to try it out.
    """
    networks = {"decoder": decoder(quick)}
    if cifar:
        networks["CNN"] = _cnn(cifar, quick)
    else:
        print("CNN skipped: --cifar names no data")
    return {
        f"{name}: {contestant}": row
        for name, fields in networks.items()
        for contestant, row in benchmark_peers.measure(
            trained(fields), repeats, _PEERS
        ).items()
    }


def _cnn(path, quick):
    """The CNN of Song et al. on 100 images of CIFAR-10 after 500 steps of SGD."""
    fields = config.default()
    fields.data.name, fields.data.normalization = path, "standard"
    fields.data.num_train, fields.data.num_test = (40, 20) if quick else (100, 1_000)
    fields.model.name, fields.model.activation = "cnn", "relu"
    if quick:
        fields.model.channels = (4, 4)
    fields.loss.reduction = "half_sum"
    fields.optimizer.learning_rate = 0.001
    fields.batch_size = 20
    # Before some training λ_3 … λ_11 are so close that 1e-3 does not tell them apart.
    fields.num_steps = 200 if quick else 500
    return fields


def decoder(quick, width=128, pieces=10, steps=200):
    """A language model of 1,024,512 parameters on 10 pieces of 32 bytes, after 200
    steps of SGD; of 937,576 with width 120.
    """
    fields = config.default()
    fields.data.name, fields.data.length = "sonnets", 32
    fields.data.normalization = "none"
    fields.data.num_train = pieces
    fields.model.name, fields.model.activation = "decoder", "gelu"
    fields.model.width, fields.model.num_layers = (16, 1) if quick else (width, 5)
    fields.model.scan_layers = True
    fields.loss.name = "cross_entropy"
    fields.optimizer.learning_rate = 0.1
    fields.batch_size = 10
    fields.num_steps = 20 if quick else steps
    return fields
