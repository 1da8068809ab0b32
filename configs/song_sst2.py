"""The SST2-1k protocol of Song, Ahn and Yun, *Does SGD really happen in tiny
subspaces?* (arXiv 2405.16002): full-data Hessian at every step, 20,000 steps.

Transformer with 2 layers, hidden size 64 and 8 heads, without dropout; squared error
summed over the two classes, rate 0.001, batch 50, k = 2; the first 1,000 sentences of
SST-2 for training and its 872 dev sentences as test. SGD until the average alignment
(0.9 old + 0.1 new) of the full gradient exceeds 0.95, then SGD, Dom-SGD and Bulk-SGD
from there.
What the paper leaves open is chosen here: words as tokens, learned positions, norms
before attention and dense layers, GELU, the mean over words before the last layer.

Expected: Dom-SGD stops improving at the fork, Bulk-SGD goes on as SGD does.

A product with the Hessian of all sentences takes some 2 seconds on two busy CPU cores:
the whole protocol wants an accelerator.

Each file is a table with tabs and the columns sentence and label:

  python -m bulk_sgd.main --config=configs/song_sst2.py --workdir=runs/song_sst2 \
    --config.data.name=tsv:train.tsv --config.data.test_path=dev.tsv

or what `scripts/prepare_data.py` prepares:

    --config.data.name=tfds:glue/sst2 --config.data.test_split=validation

`--config=configs/song_sst2.py:cheap` goes the whole way in 95 minutes on one busy CPU
core: the subspace comes from `streaming(factors=8, every=16, gain=0.4)` on the
mini-batch, the fork is at step 2,000, and sentences are cut after 28 words (95 % of the
training sentences are shorter).

`--config=configs/song_sst2.py:quick` takes 40 steps of 100 sentences, cut after 16
words, to see it run.
"""

from configs.song_mnist5k import get_config as song_mnist5k


def get_config(variant: str = ""):
    """The config; `variant` is "", "quick" or "cheap"."""
    config = song_mnist5k(variant)
    config.name = "SST2-1k, protocol of Song et al."
    config.data.name = "tsv:sst2_train.tsv"
    config.data.test_path = "sst2_dev.tsv"
    config.data.normalization = "none"
    config.data.num_train = 1_000
    config.model.name = "transformer"
    config.model.width = 64
    config.model.num_layers = 2
    config.model.num_heads = 8
    config.model.activation = "gelu"
    config.optimizer.learning_rate = 0.001
    config.subspace.rank = 2
    config.microbatch_size = 250
    if variant == "quick":
        config.model.scan_layers = True  # two layers compile as one
        config.data.num_train, config.data.length = 100, 16
        config.microbatch_size = 0
    if variant == "cheap":
        config.model.scan_layers, config.data.length = True, 28
        config.switch.step = 2_000
    return config
