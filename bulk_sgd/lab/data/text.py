"""Text as tokens: labelled sentences by words, running text by bytes or as ids."""

import collections
import pathlib

import numpy as np

from bulk_sgd.lab.data.dataset import Dataset, count, wrong
from bulk_sgd.lab.data.rows import LazyRows
from bulk_sgd.lab.models.transformer import PADDING

UNKNOWN = 1

_EMBEDDED = pathlib.Path(__file__).parent / "embedded" / "sonnets.txt"


def read_tsv(config, part: str) -> tuple[list[str], np.ndarray, int]:
    """Selected sentences of a TSV file, their labels, and the number of classes.

    The first line names the columns; 'sentence' and 'label' are read, without quoting.
    """
    field = {"train": "name", "test": "test_path"}[part]
    path = getattr(config, field).removeprefix("tsv:")
    try:
        text = _map_bytes(config, field, path).tobytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise wrong(config, field, "its text is not UTF-8") from error
    header, *lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    columns = header.split("\t")
    if not {"sentence", "label"} <= set(columns):
        problem = f"its first line names {columns}, not sentence and label"
        raise wrong(config, field, problem)
    rows = [line.split("\t") for line in lines]
    for number, row in enumerate(rows, 2):
        entry = dict(zip(columns, row))
        if len(row) != len(columns):
            problem = f"has {len(row)} columns, not {len(columns)}"
        elif not entry["sentence"].strip():
            problem = "has a sentence without words"
        elif not entry["label"].isdecimal():
            problem = f"has the label {entry['label']!r}, not a number from 0"
        else:
            continue
        raise wrong(config, field, f"its line {number} {problem}")
    if not rows:
        raise wrong(config, field, "it holds no sentences")
    sentences = [row[columns.index("sentence")] for row in rows]
    labels = np.array([row[columns.index("label")] for row in rows]).astype(np.int32)
    number = count(config, part, len(rows))
    return sentences[:number], labels[:number], int(labels.max()) + 1


def labelled(config, train, test) -> Dataset:
    """Sentences as words, numbered by their frequency in the training set.

    White space separates words; case is ignored. Token 0 is padding. Token 1 is any
    word that the training set lacks, so its embedding is not trained. Each part is what
    `read_tsv` returns.
    """
    _check_normalization(config)
    split = lambda sentences: [sentence.lower().split() for sentence in sentences]
    words = split(train[0]), split(test[0])
    counts = collections.Counter(word for sentence in words[0] for word in sentence)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    tokens = {word: i for i, word in enumerate(ranked, UNKNOWN + 1)}
    length = config.length or max(map(len, words[0]))

    def encoded(sentences):
        table = np.full((len(sentences), length), PADDING, np.int32)
        for row, sentence in zip(table, sentences):
            found = [tokens.get(word, UNKNOWN) for word in sentence[:length]]
            row[: len(found)] = found
        return table

    inputs = [encoded(part) for part in words]
    targets = [part[1].astype(np.int32) for part in (train, test)]
    sizes = max(train[2], test[2]), UNKNOWN + 1 + len(tokens)
    return Dataset(config.name, inputs[0], targets[0], inputs[1], targets[1], *sizes)


def running(config) -> Dataset:
    """Running text as tokens, each with the next token as its target.

    The text is cut into examples of `length` tokens. The last target of an example is
    the first token of the next one; the remainder is dropped.
    """
    _check_normalization(config)
    if not config.length:
        raise wrong(config, "length", "running text needs 1 or more")
    kind, _, path = config.name.partition(":")
    if kind == "random":
        texts = _random(config)
    else:
        read = _map_ids if kind == "tokens" else _map_bytes
        train = read(config, "name", _EMBEDDED if kind == "sonnets" else path)
        if config.test_path:
            test_path = config.test_path.removeprefix(f"{kind}:")
            texts = train, read(config, "test_path", test_path)
        else:
            texts = np.split(train, [len(train) - len(train) // 10])
    seen = max(int(tokens.max()) + 1 for tokens in texts if len(tokens))
    if kind in ("sonnets", "text"):
        seen = 256
    vocab_size = config.vocab_size or seen
    if vocab_size < seen:
        problem = f"the text has {seen} tokens (0 takes as many)"
        raise wrong(config, "vocab_size", problem)
    arrays = []
    for part, tokens in zip(("train", "test"), texts):
        available = (len(tokens) - 1) // config.length
        if available < 1:
            problem = f"the text to {part} on has {len(tokens)} tokens, too few for one"
            raise wrong(config, "length", f"{problem} example and its last target")
        number = count(config, part, available)
        for start in (0, 1):
            piece = tokens[start : start + number * config.length]
            piece = piece.reshape(number, config.length)
            rows = LazyRows(piece.shape, piece.dtype, piece.__getitem__)
            arrays.append(rows.map(lambda x: x.astype(np.int32), np.int32))
    return Dataset(config.name, *arrays, num_classes=vocab_size, vocab_size=vocab_size)


def _random(config) -> list[np.ndarray]:
    """Uniformly random tokens to train and to test on."""
    for field in ("num_train", "num_test", "vocab_size"):
        if config[field] < 1:
            raise wrong(config, field, "random tokens need 1 or more")
    draw = np.random.default_rng(0).integers
    sizes = (config.num_train, config.num_test)
    return [draw(config.vocab_size, size=n * config.length + 1) for n in sizes]


def _map_ids(config, field: str, path) -> np.ndarray:
    """The token ids of an .npy, mapped so that only those in use are read."""
    try:
        tokens = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        problem = f"there is no such .npy of numbers to read ({error})"
        raise wrong(config, field, problem) from error
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        problem = f"it holds {tokens.dtype} {tokens.shape}, not integers (n,)"
        raise wrong(config, field, problem)
    if len(tokens) and tokens.min() < 0:
        raise wrong(config, field, "it holds negative numbers")
    return tokens


def _map_bytes(config, field: str, path) -> np.ndarray:
    """The bytes of a file, mapped so that only those in use are read."""
    try:
        if pathlib.Path(path).stat().st_size == 0:
            return np.zeros(0, np.uint8)  # an empty file cannot be mapped
        return np.memmap(path, np.uint8, "r")
    except OSError as error:
        problem = f"there is no such file to read ({error.strerror})"
        raise wrong(config, field, problem) from error


def _check_normalization(config):
    if config.normalization != "none":
        raise wrong(config, "normalization", "tokens take 'none'")
