"""What ``--ref`` means: a folder, a GGUF file, a known name or a hub repository, at a revision or not."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch

from inheritune_lit import references
from inheritune_lit.checkpoint.architectures.base import Architecture, full_name, hf_pieces, litgpt_name, split_name
from inheritune_lit.checkpoint.architectures.table import architecture_of_hf, architecture_of_lit
from inheritune_lit.checkpoint.config import (
    Config,
    configs,
    load_hf_config,
    load_lit_config,
    make_config,
    refuse_quantized,
    require,
)
from inheritune_lit.checkpoint.folder import HF_CONFIG, MODEL_CONFIG, check_files, is_litgpt_folder, suggest_final
from inheritune_lit.checkpoint.formats import FLOATS
from inheritune_lit.checkpoint.gguf import as_huggingface, find_gguf
from inheritune_lit.checkpoint.hub import Repository, cached_identity, open_repository, sha256_of
from inheritune_lit.checkpoint.tensors import EMBEDDING, HEAD, Piece, count_parameters, read_piece, tensor_shapes
from inheritune_lit.checkpoint.weights import Weights, open_weights
from inheritune_lit.errors import UserError
from inheritune_lit.io.reading import read_json
from inheritune_lit.tokenizer import Tokenizer, has_tokenizer

_HF_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NO_FOLDER = "no folder at {}; give a checkpoint folder, a hub repository or a known name"


@dataclass(frozen=True)
class ReferenceModel:
    """A pretrained model, described by its configuration; its weights are mapped, not loaded."""

    folder: Path
    org: str  # this and the name are for the names of what is made from it
    name: str
    config: Config  # of the whole reference
    hf: dict[str, Any]  # its ``config.json``, or what it would say
    architecture: Architecture
    hf_keys: bool  # the weights carry Hugging Face names, else litgpt's
    tied: bool  # the head is the token embedding
    weights: Weights | None = None  # its tensors, or some of them, under their full names, when it is opened

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every litgpt tensor of the reference with its shape; a tied head is left out."""
        return tensor_shapes(self.config, self.tied)

    def pieces(self, name: str) -> list[Piece] | None:
        """Stored tensors that a litgpt tensor of the reference is made of; None for a bias it does not have."""
        rows = self.shapes[name][0]
        if not self.hf_keys:
            return [Piece(name, 0, rows)]
        _, module, kind = split_name(name)
        switch = self.architecture.bias_switches.get(module.partition(".")[0])
        if kind == "bias" and switch is not None and not self.hf.get(*switch):
            return None
        return hf_pieces(self.architecture, self.config, name, rows)

    def stored_names(self, names: Iterable[str]) -> set[str]:
        """Names of the stored tensors behind litgpt tensors."""
        return {piece.name for name in names for piece in self.pieces(name) or ()}

    def full_names(self, names: Iterable[str]) -> Callable[[str], str]:
        """How to write stored names in full; of a tied pair that is stored as the head alone, it is the embedding."""
        names, (embedding,) = set(names), self.stored_names([EMBEDDING])
        full = full_name(self.architecture, names) if self.hf_keys else str
        head = f"{self.architecture.outer['lm_head']}.weight" if self.hf_keys else HEAD
        if not self.tied or embedding in map(full, names):
            return full
        return lambda name: embedding if full(name) == head else full(name)

    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every stored tensor, as the configuration says."""
        stored: dict[str, tuple[int, ...]] = {}
        for name, shape in self.shapes.items():
            for piece in self.pieces(name) or ():
                whole = (piece.stop, *shape[1:])  # where no later piece comes behind it
                stored[piece.name] = max(stored.get(piece.name, ()), whole[::-1] if piece.transpose else whole)
        return stored

    def tensor(self, name: str) -> torch.Tensor:
        """A litgpt tensor of an opened reference on the CPU as stored: zeros for a bias that the checkpoint lacks."""
        pieces, weights = self.pieces(name), self.weights
        if pieces is None:
            return torch.zeros(self.shapes[name])
        assert weights, "an opened reference"
        return torch.cat([chunk for piece in pieces for chunk in read_piece(weights.tensor(piece.name), piece)])

    def remapped(self) -> "ReferenceModel":
        """The same with its weights mapped anew: pages that were read leave memory with the old mapping."""
        return replace(self, weights=self.weights.remapped()) if self.weights else self

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the stored embedding, else what ``config.json`` states, else fp32."""
        for name in self.stored_names([EMBEDDING]):
            if self.weights and name in self.weights.specs:
                return self.weights.specs[name].dtype
        return _HF_DTYPES.get(str(self.hf.get("dtype", self.hf.get("torch_dtype"))), torch.float32)


def open_reference(folder: Path, org: str, name: str | None = None) -> ReferenceModel:
    """Read the configuration of a Hugging Face or litgpt folder, not its weights; another folder is a ``UserError``.

    ``org`` made it, "local" where unknown; ``name`` is the one it carries, else the folder's, when None.
    """
    if not folder.is_dir():
        raise UserError(_NO_FOLDER.format(folder))
    check_files(folder)
    hf = load_hf_config(folder)
    refuse_quantized(hf or {}, folder / HF_CONFIG)
    if not is_litgpt_folder(folder):
        if hf is None:
            remedy = suggest_final(folder) or "give the folder of one"
            raise UserError(f"{folder} holds no checkpoint: neither {HF_CONFIG} nor {MODEL_CONFIG} is there; {remedy}")
        return reference_of_hf(folder, org, name or folder.resolve().name, hf)
    config = load_lit_config(folder)
    architecture = architecture_of_lit(config) if hf is None else architecture_of_hf(hf)
    if hf is not None and (depth := architecture.to_lit(hf)["n_layer"]) != config.n_layer:
        raise UserError(f"{folder}: {HF_CONFIG} says {depth} layers, {MODEL_CONFIG} {config.n_layer}; get it again")
    name, hf = name or config.name or folder.resolve().name, hf or {}
    org = config.hf_config.get("org", org) if org == "local" else org
    return ReferenceModel(folder, org, name, config, hf, architecture, False, _is_tied(hf, architecture))


def reference_of_hf(folder: Path, org: str, name: str, hf: dict[str, Any], **overrides: Any) -> ReferenceModel:
    """The model that a ``config.json`` describes; ``overrides`` are litgpt's fields. One not supported is refused."""
    architecture, vocabulary = architecture_of_hf(hf), require(hf, "vocab_size")
    fields = {"vocab_size": vocabulary, "padded_vocab_size": vocabulary, **architecture.to_lit(hf), **overrides}
    fields |= {"name": litgpt_name(architecture, name), "hf_config": {"org": org, "name": name}}
    config = make_config(lambda: architecture.config_class(**fields), fields, folder / HF_CONFIG, "get it again")
    return ReferenceModel(folder, org, name, config, hf, architecture, True, _is_tied(hf, architecture))


def _is_tied(hf: dict[str, Any], architecture: Architecture) -> bool:
    return bool(hf.get("tie_word_embeddings", architecture.tied_by_default))


def attach_weights(reference: ReferenceModel, weights: Weights) -> ReferenceModel:
    """The reference with its weights, which are compared with what the configuration promises.

    Whether the head of a litgpt folder is tied is as the weights have it, whatever ``config.json`` says. A tensor that
    the model does not have, a wrong shape, or a tied head that differs is a ``UserError``.
    """
    if not reference.hf_keys:
        # litgpt's own tools store a tied head twice, and untie it in training: the weights decide.
        tied = (EMBEDDING, HEAD) in weights.tied or (
            reference.tied
            and {EMBEDDING, HEAD} <= weights.specs.keys()
            and torch.equal(weights.tensor(EMBEDDING), weights.tensor(HEAD))
        )
        reference = replace(reference, tied=tied)
    weights = weights.renamed(reference.full_names(weights.specs))
    reference = replace(reference, weights=weights)
    (embedding,), expected = reference.stored_names([EMBEDDING]), reference.stored_shapes()
    heads = (HEAD, f"{reference.architecture.outer['lm_head']}.weight")
    for name, spec in weights.specs.items():
        file, shape, wanted = weights.file_of[name], list(spec.shape), list(expected.get(name, ()))
        if name in expected:
            if not spec.dtype.is_floating_point:
                raise UserError(f"{file}: {name} has dtype {spec.dtype}; {FLOATS}")
            if shape != wanted:
                raise UserError(f"{file}: {name} has shape {shape}, its configuration says {wanted}; get it again")
        elif reference.tied and name in heads:
            if embedding in weights.specs and not torch.equal(weights.tensor(embedding), weights.tensor(name)):
                problem = f"{HF_CONFIG} says the head is tied, but {name} differs from {embedding}"
                raise UserError(f"{file}: {problem}; correct tie_word_embeddings")
        elif not name.endswith(reference.architecture.ignored):
            raise UserError(f"{file} holds {name}, {_foreign(name)}")
    return reference


_QUANTIZED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|absmax|nested_absmax|quant_map|nested_quant_map|quant_state|SCB|CB|weight_format"
    r"|\w+_scale(_inv|_2)?|weight_packed|weight_shape|\w*zero_point|codebooks|codes|biases)(\.|$)|_(blocks|scales)$"
)


def _foreign(name: str) -> str:
    """What a tensor that is not the model's belongs to, as far as its name tells, and what to do."""
    if re.search(r"\.(lora_\w+|base_layer|adapter\w*|lora)(\.|$)", name):
        return "of an adapter that is not merged; merge it into its model first"
    if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
        return "all experts in one tensor; save it as transformers does, with save_original_format"
    if match := _QUANTIZED.search(name):
        return f"whose {match[0].strip('.')} belong to quantised weights; {FLOATS}"
    return "which a model of its configuration does not have; get the reference again"


def reference_from_table(known: references.Reference) -> ReferenceModel | None:
    """A named reference from litgpt's table of models, without files and network; None where the table lacks it.

    The table pads vocabularies and does not say which heads are tied: the known number of parameters decides.
    """
    org, name = known.repository.split("/")
    entries = [each for each in configs if (each["hf_config"]["org"], each["hf_config"]["name"]) == (org, name)]
    for padded in (Config(**entry) for entry in entries):
        for vocabulary, tied in product((padded.vocab_size, padded.padded_vocab_size), (False, True)):
            config = replace(padded, padded_vocab_size=vocabulary)
            if count_parameters(tensor_shapes(config, tied)) == known.parameters:
                return ReferenceModel(Path(), org, name, config, {}, architecture_of_lit(config), False, tied)
    return None


@dataclass(frozen=True)
class ResolvedReference:
    """A reference, without weights until it is opened, and where it comes from."""

    reference: ReferenceModel
    source: str  # its folder, file or repository (with the revision that was asked for), for the manifest
    repository: Repository | None = None
    gguf: Path | None = None
    shape_only: bool = False  # it has no weights
    revision: str | None = None  # its commit, for a repository or a folder of the hub's cache

    def open(self, names: set[str] | None = None) -> "ResolvedReference":
        """The same with its weights, mapped or downloaded, for the litgpt names or all; unfit ones are refused."""
        if self.shape_only:
            remedy = "give --init random and train it, then slice the folder of the trained one"
            raise UserError(f"nobody has published weights of {self.source}: {remedy}")
        if self.repository:
            needed = self.reference.stored_names(self.reference.shapes if names is None else names)
            weights = self.repository.download(needed, self.reference.full_names)
        else:
            weights = open_weights(self.reference.folder)
        reference = attach_weights(self.reference, weights)
        assert reference.weights
        depth, wanted = reference.config.n_layer, set(reference.shapes if names is None else names)
        wanted &= reference.shapes.keys()
        if not self.repository:  # all tensors are known: the last layer shows whether there are as many as it says
            last = f"transformer.h.{depth - 1}."
            wanted |= {name for name in reference.shapes if name.startswith(last)}
        stored = {piece.name for name in wanted for piece in reference.pieces(name) or ()}
        if missing := sorted(stored - reference.weights.specs.keys()):
            problem = f"{len(missing)} tensors are missing, such as {missing[0]}; get it again"
            raise UserError(f"{self.source} does not fit its configuration ({depth} layers): {problem}")
        if self.gguf:
            reference = replace(reference, weights=replace(reference.weights, files=[self.gguf], format="gguf"))
        return replace(self, reference=reference)

    def file_hashes(self) -> dict[str, str | None]:
        """Names and SHA-256 of the files behind the opened weights; the hub states its own."""
        assert self.reference.weights, "an opened reference"
        if self.repository:
            return {file["path"]: file["sha256"] for file in self.repository.record(self.reference.weights)}
        return {path.name: sha256_of(path) for path in self.reference.weights.files}


@contextmanager
def resolve(ref: str, tokenizer_dir: Path | None = None) -> Iterator[ResolvedReference]:
    """Find a reference, for the length of the block, and read its configuration; a bad one is a ``UserError``.

    ``tokenizer_dir`` is GPT-2's tokenizer for a shape without weights, fetched from the hub when None.
    """
    path = Path(ref).expanduser()
    if tokenizer_dir is not None and (path.is_dir() or not references.find_shape(ref)):
        raise UserError(f"--tokenizer_dir {tokenizer_dir}: --ref {ref} brings its own tokenizer; leave it out")
    if gguf := find_gguf(path):
        with as_huggingface(gguf) as folder:
            yield ResolvedReference(open_reference(folder, "local", gguf.stem), str(gguf), gguf=gguf)
    elif path.is_dir():
        org, name, revision = cached_identity(path) or ("local", None, None)
        yield ResolvedReference(open_reference(path, org, name), str(path), revision=revision)
    elif shape := references.find_shape(ref):
        folder = tokenizer_dir or open_repository(references.TOKENIZER_OF_SHAPES).folder
        Tokenizer(folder)  # or the new model would have none
        yield ResolvedReference(describe_shape(shape, folder), shape.name, shape_only=True)
    else:
        name, at, revision = ref.partition("@")
        if at and not revision:
            raise UserError(f"--ref {ref} names no revision behind the @; give a branch, tag or commit, or no @")
        if name.startswith((".", "/", "~")) or name.endswith(".gguf"):
            raise UserError(_NO_FOLDER.format(name))
        known = references.find_reference(name)
        if known is None and name.count("/") != 1:
            raise references.unknown_reference(name)
        repository = open_repository(known.repository if known else name, revision or None, bool(known and known.gated))
        reference = open_reference(repository.folder, *repository.name.split("/"))
        yield ResolvedReference(reference, repository.name + at + revision, repository, revision=repository.revision)


VOCABULARY = 50304  # GPT-2's 50,257 tokens and 47 that no text has: a multiple of 64 (the paper's code)


def describe_shape(shape: references.Shape, tokenizer_dir: Path) -> ReferenceModel:
    """GPT-2 without biases, head tied, attention divided by the layer's number, with its tokenizer's BOS and EOS."""
    tokenizer = Tokenizer(tokenizer_dir) if has_tokenizer(tokenizer_dir) else None
    sizes = {"n_layer": shape.layers, "n_embd": shape.width, "n_head": shape.heads, "vocab_size": VOCABULARY}
    bos_id, eos_id = (tokenizer.bos_id, tokenizer.eos_id) if tokenizer else (50256, 50256)
    ends = {"bos_token_id": bos_id, "eos_token_id": eos_id}
    hf = {**read_json(Path(__file__).with_name("gpt2.json")), **sizes, **ends}
    return reference_of_hf(tokenizer_dir, "paper", shape.name, hf, bias=False, norm_bias=False)
