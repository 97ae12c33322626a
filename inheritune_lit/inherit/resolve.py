"""What ``--ref`` means: a folder, a GGUF file, a known name or a hub repository, both of these at a revision or not."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from inheritune_lit.checkpoint.architectures.base import full_name
from inheritune_lit.checkpoint.gguf import as_huggingface, find_gguf
from inheritune_lit.checkpoint.hub import Repository, open_repository
from inheritune_lit.checkpoint.weights import Weights, open_weights
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.initialise import describe_shape
from inheritune_lit.inherit.plan import inherited_names
from inheritune_lit.inherit.reference import ReferenceModel, attach_weights, open_reference
from inheritune_lit.references import TOKENIZER_OF_SHAPES, find_reference, find_shape, unknown_reference
from inheritune_lit.tokenizer import Tokenizer


@dataclass
class Located:
    """A reference and where it comes from.

    Attributes:
        reference: the opened reference.
        source: its folder, file or repository (with the revision that was asked for), for the manifest.
        repository: its hub repository, if it is from the hub.
        gguf: its GGUF file, if it is one.
        scratch: it has a shape only.
    """

    reference: ReferenceModel
    source: str
    repository: Repository | None = None
    gguf: Path | None = None
    scratch: bool = False

    def weights_at_hand(self, args: SliceArgs) -> Weights | None:
        """The weights a slice needs; None where it needs none, or where they would have to be downloaded."""
        return None if args.init == "random" or self.repository else self.weights(args)

    def weights(self, args: SliceArgs | None = None) -> Weights:
        """The weights that a slice inherits; all of them without arguments.

        Raises:
            UserError: there are none, they are damaged or do not fit the configuration.
        """
        if self.scratch:
            raise UserError(
                f"nobody has published weights of {self.source}: give --init random and train it, then slice the "
                "folder of the trained one"
            )
        if self.repository is None:
            weights = attach_weights(self.reference, open_weights(self.reference.folder))
        else:
            wanted = inherited_names(self.reference, args) if args else self.reference.shapes
            needed = self.reference.stored_names(wanted)
            downloaded = self.repository.download(needed, partial(full_name, self.reference.architecture))
            weights = attach_weights(self.reference, downloaded)
        if self.gguf:
            weights.files, weights.format = [self.gguf], "gguf"
        return weights


@contextmanager
def locate(ref: str, tokenizer_dir: Path | None = None) -> Iterator[Located]:
    """Open a reference for the length of the block.

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
            yield Located(open_reference(folder, "local", gguf.stem), str(gguf), gguf=gguf)
    elif path.is_dir():
        yield Located(open_reference(path, "local"), str(path))
    elif shape := find_shape(ref):
        folder = tokenizer_dir or open_repository(TOKENIZER_OF_SHAPES, None, gated=False).folder
        Tokenizer(folder)  # or the new model would have none
        yield Located(describe_shape(shape, folder), shape.name, scratch=True)
    else:
        name, at, revision = ref.partition("@")
        if at and not revision:
            raise UserError(
                f"--ref {ref} names no revision behind the @; give a branch, tag or commit, or leave it out"
            )
        repository = _find_repository(name, revision or None)
        reference = open_reference(repository.folder, *repository.name.split("/"))
        yield Located(reference, repository.name + at + revision, repository)


def _find_repository(ref: str, revision: str | None) -> Repository:
    if ref.startswith((".", "/", "~")) or ref.endswith(".gguf"):
        raise UserError(f"no folder at {ref}; give a checkpoint folder, a hub repository or a known name")
    known = find_reference(ref)
    if known is None and ref.count("/") != 1:
        raise unknown_reference(ref)
    return open_repository(known.repository if known else ref, revision, gated=bool(known and known.gated))
