"""A small language model on bytes of text: cross-entropy over all positions.

Decoder with 2 layers, width 64 and 8 heads (135,168 parameters) on nine sonnets of
Shakespeare, which the package holds: 155 examples of 32 bytes to train on, the last
tenth of the text to test on. SGD with rate 0.1, k = 10; Hessian of 64 examples,
refreshed every 20 steps; fork at step 1,000, end at 2,000.

  python -m bulk_sgd.main --config=configs/char_lm.py --workdir=runs/char_lm

`--config.data.name=text:PATH` takes your own text, `--config.data.test_path` another
one to test on; `--config=configs/char_lm.py:quick` takes 40 steps.
"""

from bulk_sgd.lab.config import default


def get_config(variant: str = ""):
    """The config; `variant` is "" or "quick"."""
    if variant not in ("", "quick"):
        raise ValueError(f"variant is {variant!r}; it must be empty or 'quick'.")
    config = default()
    config.name = "Bytes of text, decoder"
    config.data.name = "sonnets"
    config.data.length = 32
    config.data.normalization = "none"
    config.model.name = "decoder"
    config.model.width = 64
    config.model.num_layers = 2
    config.model.num_heads = 8
    config.model.scan_layers = bool(variant)  # two layers compile as one
    config.model.activation = "gelu"
    config.loss.name = "cross_entropy"
    config.batch_size = 16
    config.num_steps = 40 if variant else 2_000
    config.optimizer.learning_rate = 0.1
    config.subspace.rank = 10
    config.subspace.data = "subset"
    config.subspace.subset_size = 64
    config.subspace.refresh_every = 20
    config.switch.step = 20 if variant else 1_000
    config.eval_every = 10 if variant else 50
    config.arms = ("sgd", "dom_sgd", "bulk_sgd")
    return config
