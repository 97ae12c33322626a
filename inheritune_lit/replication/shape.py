"""The reference's shape and a tokenizer made from the text, as a folder without weights."""

from collections.abc import Iterator
from pathlib import Path

from inheritune_lit.checkpoint.lit_config import GPT2Config, save_lit_config
from inheritune_lit.data.formats.report import ReadReport
from inheritune_lit.data.formats.table import format_of
from inheritune_lit.data.options import PrepareOptions
from inheritune_lit.data.sources import find_sources
from inheritune_lit.replication.grid import Scale
from inheritune_lit.tokenizer_training import train_tokenizer

_CHARACTERS = 8_000_000


def write_shape(folder: Path, text: str, scale: Scale) -> None:
    """Write ``model_config.yaml`` and a SentencePiece tokenizer.

    Args:
        folder: an existing folder to fill.
        text: what ``inheritune prepare`` reads; equal parts of each file make the tokenizer.
        scale: sizes.
    """
    config = GPT2Config(
        name="gpt2-replication",
        hf_config={"org": "local", "name": "gpt2-replication"},
        n_layer=scale.n_layer,
        n_embd=scale.n_embd,
        n_head=scale.n_head,
        intermediate_size=4 * scale.n_embd,
        block_size=scale.block_size,
        vocab_size=scale.vocab_size,
        padded_vocab_size=scale.vocab_size,
        norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP",
        gelu_approximate="tanh",
        parallel_residual=False,
        bias=False,
        norm_bias=False,
        rotary_percentage=0.0,
        scale_attn_by_inverse_layer_idx=True,
    )
    save_lit_config(config, folder)
    train_tokenizer(folder / "tokenizer.model", _lines(text), scale.vocab_size)


def _lines(text: str) -> Iterator[str]:
    options = PrepareOptions()
    sources = find_sources(text, options)
    for source in sources:
        left = _CHARACTERS // len(sources)
        kind = format_of(source.name, options)
        assert kind, source
        for document, _ in kind.read(Path(source.path), 0, None, options, ReadReport()):
            yield from filter(None, (line[:4000] for line in document[:left].split("\n")))
            left -= len(document)
            if left <= 0:
                break
