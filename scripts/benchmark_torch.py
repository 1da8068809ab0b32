"""The networks of the benchmark in torch, for the peers that work there."""

import math
import operator
import os

import jax
import numpy as np
import torch
from torch.nn import functional


class Network(torch.nn.Module):
    """A function of parameters and inputs, with parameters like a pytree in JAX.

    The parameters keep the order, names and layouts of the pytree, so a flat vector
    over them is the one of `jax.flatten_util.ravel_pytree`.
    """

    def __init__(self, apply, params):
        super().__init__()
        paths, self.treedef = jax.tree_util.tree_flatten_with_path(params)
        self.apply_to, self.names = apply, []
        for path, leaf in paths:
            self.names.append(jax.tree_util.keystr(path, simple=True, separator="/"))
            leaf = torch.nn.Parameter(torch.from_numpy(np.array(leaf)))
            self.register_parameter(self.names[-1], leaf)

    def forward(self, inputs):
        leaves = [getattr(self, name) for name in self.names]
        return self.apply_to(self.treedef.unflatten(leaves), inputs)


class _HalfSum(torch.nn.Module):
    reduction = "mean"  # over the examples, for curvlinops

    def forward(self, outputs, targets):
        one_hot = functional.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
        return 0.5 * (outputs - one_hot).square().sum(-1).mean()


class _CrossEntropy(torch.nn.Module):
    reduction = "mean"

    def forward(self, outputs, targets):
        return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def in_torch(problem):
    """The network at its parameters, the loss and the data, in torch on all cores."""
    torch.set_num_threads(os.cpu_count())
    fields = problem.fields
    apply, prepare = _NETWORKS[fields.model.name]
    network = Network(lambda p, x: apply(fields.model, p, x), problem.params)
    inputs, targets = (
        torch.from_numpy(np.array(x))
        for x in (problem.train.inputs, problem.train.targets)
    )
    criterion = _CrossEntropy() if fields.loss.name == "cross_entropy" else _HalfSum()
    return network, criterion, (prepare(inputs), targets.long())


def _linear(p, x):
    return functional.linear(x, p["kernel"].T, p["bias"])


def _mlp(_, params, x):
    for i in range(len(params)):
        x = _linear(params[f"dense_{i}"], torch.tanh(x) if i else x)
    return x


def _cnn(model, params, x):
    pool = {"average": functional.avg_pool2d, "max": functional.max_pool2d}[model.pool]
    for i in range(len(model.channels)):
        p = params[f"conv_{i}"]
        kernel = p["kernel"].permute(3, 2, 0, 1)
        x = functional.conv2d(x, kernel, p["bias"], padding=1)
        x = pool(functional.relu(x), 2)
    return _linear(params["dense"], x.permute(0, 2, 3, 1).flatten(1))


def _decoder(model, params, tokens):
    length = tokens.shape[1]
    hidden = torch.ones(length, length, dtype=bool).triu(1)
    x = functional.embedding(tokens, params["tokens"]["embedding"])
    x = x + params["positions"]["embedding"][:length]
    for i in range(model.num_layers):
        block = jax.tree.map(operator.itemgetter(i), params["blocks"])
        y = _linear(block["attention_in"], _norm(block["norm_attention"], x))
        heads = y.unflatten(-1, (3, model.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        seen = scores.masked_fill(hidden, -1e9).softmax(-1) @ value
        x = x + _linear(block["attention_out"], seen.transpose(1, 2).flatten(2))
        y = _linear(block["dense_in"], _norm(block["norm_dense"], x))
        y = functional.gelu(y, approximate="tanh")
        x = x + _linear(block["dense_out"], y)
    x = _norm(params["norm"], x)
    return _linear(params["dense"], x)


def _norm(p, x):
    # Scale and bias stay outside: given to layer_norm, torch's `jvp` of `jacrev`, the
    # products of curvlinops, lacks terms of the scale (torch 2.14.1).
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * p["scale"] + p["bias"]


_NETWORKS = {  # by name of the model: the network, and its inputs from those of JAX
    "mlp": (_mlp, lambda x: x.flatten(1)),
    "cnn": (_cnn, lambda x: x.permute(0, 3, 1, 2).contiguous()),
    "decoder": (_decoder, lambda x: x.long()),
}
