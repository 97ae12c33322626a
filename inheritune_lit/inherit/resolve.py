"""What ``--ref`` means: a folder, a GGUF file, a known name or a hub repository, both of these at a revision or not."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.architectures.base import full_name
from inheritune_lit.checkpoint.architectures.gpt import GPT2
from inheritune_lit.checkpoint.config import GPT2Config
from inheritune_lit.checkpoint.gguf import as_huggingface, find_gguf
from inheritune_lit.checkpoint.hub import Repository, open_repository
from inheritune_lit.checkpoint.weights import open_weights
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.reference import ReferenceModel, attach_weights, open_reference
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.references import TOKENIZER_OF_SHAPES, Shape, find_reference, find_shape, unknown_reference
from inheritune_lit.tokenizer import Tokenizer


@dataclass(frozen=True)
class ResolvedReference:
    """A reference and where it comes from.

    Attributes:
        reference: the model, without weights until it is opened.
        source: its folder, file or repository (with the revision that was asked for), for the manifest.
        repository: its hub repository, if it is from the hub.
        gguf: its GGUF file, if it is one.
        shape_only: it has no weights.
    """

    reference: ReferenceModel
    source: str
    repository: Repository | None = None
    gguf: Path | None = None
    shape_only: bool = False

    def open(self, names: Iterable[str] | None = None) -> "ResolvedReference":
        """The same with its weights, which are mapped, or downloaded from the hub.

        Args:
            names: litgpt names of the tensors that are needed; all of them when None.

        Raises:
            UserError: there are none, they are damaged or do not fit the configuration.
        """
        if self.shape_only:
            raise UserError(
                f"nobody has published weights of {self.source}: give --init random and train it, then slice the "
                "folder of the trained one"
            )
        if self.repository is None:
            weights = open_weights(self.reference.folder)
        else:
            needed = self.reference.stored_names(self.reference.shapes if names is None else names)
            weights = self.repository.download(needed, partial(full_name, self.reference.architecture))
        reference = attach_weights(self.reference, weights)
        assert reference.weights
        if names is None and (missing := sorted(reference.stored_shapes().keys() - reference.weights.specs.keys())):
            raise UserError(
                f"{self.source} does not fit its configuration ({reference.config.n_layer} layers): {len(missing)} "
                f"tensors are missing, such as {missing[0]}; get the checkpoint again"
            )
        if self.gguf:
            weights = replace(reference.weights, files=[self.gguf], format="gguf")
            reference = replace(reference, weights=weights)
        return replace(self, reference=reference)

    def file_hashes(self) -> dict[str, str | None]:
        """Names and SHA-256 of the files behind the opened weights; the hub states its own."""
        assert self.reference.weights, "an opened reference"
        if self.repository:
            return {file["path"]: file["sha256"] for file in self.repository.record(self.reference.weights)}
        return {path.name: sha256_file(path) for path in self.reference.weights.files}


@contextmanager
def resolve(ref: str, tokenizer_dir: Path | None = None) -> Iterator[ResolvedReference]:
    """Find a reference and read its configuration; it is there for the length of the block.

    Args:
        tokenizer_dir: GPT-2's tokenizer, for a shape without weights; fetched from the hub when None.

    Raises:
        UserError: there is no such reference, or it is damaged.
    """
    path = Path(ref).expanduser()
    if tokenizer_dir is not None and (path.is_dir() or not find_shape(ref)):
        raise UserError(f"--tokenizer_dir {tokenizer_dir}: --ref {ref} brings its own tokenizer; leave it out")
    if gguf := find_gguf(path):
        with as_huggingface(gguf) as folder:
            yield ResolvedReference(open_reference(folder, "local", gguf.stem), str(gguf), gguf=gguf)
    elif path.is_dir():
        yield ResolvedReference(open_reference(path, "local"), str(path))
    elif shape := find_shape(ref):
        folder = tokenizer_dir or open_repository(TOKENIZER_OF_SHAPES, None, gated=False).folder
        Tokenizer(folder)  # or the new model would have none
        yield ResolvedReference(describe_shape(shape, folder), shape.name, shape_only=True)
    else:
        name, at, revision = ref.partition("@")
        if at and not revision:
            raise UserError(
                f"--ref {ref} names no revision behind the @; give a branch, tag or commit, or leave it out"
            )
        repository = _find_repository(name, revision or None)
        reference = open_reference(repository.folder, *repository.name.split("/"))
        yield ResolvedReference(reference, repository.name + at + revision, repository)


def _find_repository(ref: str, revision: str | None) -> Repository:
    if ref.startswith((".", "/", "~")) or ref.endswith(".gguf"):
        raise UserError(f"no folder at {ref}; give a checkpoint folder, a hub repository or a known name")
    known = find_reference(ref)
    if known is None and ref.count("/") != 1:
        raise unknown_reference(ref)
    return open_repository(known.repository if known else ref, revision, gated=bool(known and known.gated))


VOCABULARY = 50304
"""GPT-2's 50,257 tokens and 47 that no text has: a multiple of 64 (the paper's code)."""


def describe_shape(shape: Shape, tokenizer_dir: Path) -> ReferenceModel:
    """A reference that only has a shape: no biases, tied head, attention divided by the layer's number.

    Args:
        tokenizer_dir: where GPT-2's tokenizer is.
    """
    hf: dict[str, Any] = {
        "model_type": "gpt2",
        "n_layer": shape.layers,
        "n_embd": shape.width,
        "n_head": shape.heads,
        "n_positions": 1024,
        "activation_function": "gelu_new",
        "initializer_range": 0.02,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "scale_attn_by_inverse_layer_idx": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
    }
    fields = {**GPT2.to_lit(hf), "bias": False, "norm_bias": False}
    config = GPT2Config(
        name=shape.name,
        hf_config={"org": "paper", "name": shape.name},
        vocab_size=VOCABULARY,
        padded_vocab_size=VOCABULARY,
        **fields,
    )
    return ReferenceModel(tokenizer_dir, "paper", shape.name, config, hf, GPT2, True, True)
