"""Sequences of tokens that layers are measured on, drawn from packed data or from text."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inheritune_lit.data.packed import PackedDataset, check_fits_model
from inheritune_lit.data.sources import is_hub_source, iter_documents
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.tokenizer import Tokenizer

_CHARACTERS = 1 << 26  # most characters of text that are read, equally many of each source file
_LONGEST = 1 << 20  # most characters of a document that are used


def check_context(reference: ReferenceModel, length: int) -> None:
    """Refuses sequences that are longer than a model's context."""
    if length > (most := reference.config.block_size):
        context = f"the context of {reference.name}, {most} tokens"
        raise UserError(f"--seq_length {length} is more than {context}; give less")


def draw_sequences(
    data: Path, tokenizer_dir: Path, vocabulary: int, count: int, length: int, seed: int, split: str = "val"
) -> Tensor:
    """Returns random sequences with the token that follows each, int64, (count, length + 1).

    ``data`` is packed data, of which a split is used, or a file or folder of text that ``inheritune prepare`` reads, of
    which no sequence spans two documents. The model has its tokenizer in ``tokenizer_dir`` and ``vocabulary``
    embeddings. No such data, too little of it, or one made for another model, is a ``UserError``.
    """
    random = np.random.default_rng(seed)
    if read_manifest(data, "packed_data"):
        check_fits_model(data, tokenizer_dir, vocabulary)
        dataset = PackedDataset(data, split, length)
        # The last sample of a domain may be shorter.
        whole = np.flatnonzero(dataset.targets(np.arange(len(dataset))) == length)
        _check_enough(len(whole), count, length, data / split)
        return torch.from_numpy(dataset.batch(random.choice(whole, count, replace=False)))
    sequences = _from_texts(data, Tokenizer(tokenizer_dir, parse_special_tokens=False), count, length, random)
    if (largest := int(sequences.max())) >= vocabulary:
        problem = f"{tokenizer_dir} gives token id {largest}, the model has {vocabulary} embeddings"
        raise UserError(f"vocabulary too large for the model: {problem}; copy the tokenizer again from the reference")
    return sequences


def _from_texts(data: Path, tokenizer: Tokenizer, count: int, length: int, random: np.random.Generator) -> Tensor:
    """Returns one sequence per document first, and more of them where there are too few documents."""
    if is_hub_source(str(data)) and not data.exists():
        raise UserError(f"--data {data} is not here; give packed data, or a file or folder of text")
    texts = list(iter_documents(data, max_characters=_CHARACTERS))
    if not texts:
        raise UserError(f"{data} holds no text; give other --data")
    first, further, longest = [], [], 0
    for index in random.permutation(len(texts)):
        ids = tokenizer.encode(texts[index][:_LONGEST])
        longest = max(longest, len(ids))
        starts = random.permutation(range(0, len(ids) - length, length + 1))
        windows = [ids[start : start + length + 1] for start in starts]
        first += windows[:1]
        further += windows[1:count]
        if len(first) == count:
            break
    if longest < length + 1:
        problem = f"the longest document of {data} has {longest} tokens, {length + 1} are needed"
        remedy = "give longer documents or a smaller --seq_length"
        raise UserError(f"sequences shorter than --seq_length {length}: {problem}; {remedy}")
    _check_enough(len(first) + len(further), count, length, data)
    if left := count - len(first):
        first += [further[index] for index in random.choice(len(further), left, replace=False)]
    return torch.tensor(first, dtype=torch.int64)


def _check_enough(found: int, count: int, length: int, place: Path) -> None:
    if found < count:
        problem = f"{place} holds {found} sequences of {length} tokens, --num_sequences asks for {count}"
        raise UserError(f"too little text: {problem}; give more text, or smaller --num_sequences or --seq_length")
