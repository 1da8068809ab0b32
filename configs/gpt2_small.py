"""A language model of the shape of GPT-2 small: 124 M parameters, on a pod.

Decoder with 12 layers, width 768, 12 heads, 1,024 positions and tied embeddings
(124,475,904 parameters). The 50,257 tokens of GPT-2 are filled up to 50,304, which
the devices of a pod divide. SGD, k = 10; Hessian of 64 examples of 1,024 tokens,
refreshed every 100 steps, in microbatches of one example per device; parameters,
optimizer state and basis split over 16 devices.

You bring the token ids, one .npy of integers (n,):

  pip install tiktoken
  python -c "import numpy, tiktoken; text = open('text.txt').read();
  ids = tiktoken.get_encoding('gpt2').encode_ordinary(text);
  numpy.save('tokens.npy', numpy.array(ids, 'uint16'))"
  python -m bulk_sgd.main --config=configs/gpt2_small.py --workdir=runs/gpt2_small \\
    --config.data.name=tokens:tokens.npy --distributed=on

`--config=configs/gpt2_small.py:quick` draws tokens instead and takes 40 steps, to
compile and to measure with. For more than 16 devices raise `config.batch_size`,
`config.microbatch_size` and `config.subspace.subset_size` to multiples of their number.
"""

from bulk_sgd.lab.config import default


def get_config(variant: str = ""):
    """The config; `variant` is "" or "quick"."""
    if variant not in ("", "quick"):
        raise ValueError(f"variant is {variant!r}; it must be empty or 'quick'.")
    config = default()
    config.name = "GPT-2 small"
    config.data.name = "random" if variant else "tokens:tokens.npy"
    config.data.length = 1_024
    config.data.vocab_size = 50_304
    config.data.normalization = "none"
    config.data.num_train = 4_096
    config.data.num_test = 256
    config.model.name = "decoder"
    config.model.width = 768
    config.model.num_layers = 12
    config.model.num_heads = 12
    config.model.scan_layers = config.model.remat = True
    config.model.tied = True
    config.model.activation = "gelu"
    config.loss.name = "cross_entropy"
    config.batch_size = 16
    config.microbatch_size = 16
    config.num_steps = 40 if variant else 20_000
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.subspace.rank = 10
    config.subspace.data = "subset"
    config.subspace.subset_size = 64
    config.subspace.refresh_every = 100
    config.switch.step = 20 if variant else 10_000
    config.eval_every = 10 if variant else 100
    config.checkpoint.every = 500
    config.arms = ("sgd", "dom_sgd", "bulk_sgd")
    config.sharding.fsdp = 16
    return config
