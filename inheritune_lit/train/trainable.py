"""Which parameters of a model are trained: ``--train.trainable``."""

import math
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from litgpt.model import GPT

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.tensors import EMBEDDING, HEAD, Shapes, tensor_shapes
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import parse_layers
from inheritune_lit.model.flops import flops_per_token, layers_reached

_POSITIONS = "transformer.wpe.weight"


@dataclass(frozen=True)
class TrainedModel:
    """The shape of a model, and which of its parameters are trained; all others are frozen."""

    config: Config
    tied: bool  # whether the head is the token embedding
    trainable: str | None  # as of ``TrainArgs``

    @classmethod
    def of(cls, gpt: GPT, trainable: str | None) -> "TrainedModel":
        """That of a model, which stays as it is."""
        return cls(gpt.config, gpt.lm_head.weight is gpt.transformer.wte.weight, trainable)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of what is trained, both of them for a head that is the embedding.

        A pattern that names nothing of the model is a ``UserError``.
        """
        shapes = tensor_shapes(self.config, tied=False)
        if self.trainable is None:
            return frozenset(shapes)
        patterns = self.trainable.replace(" ", "").split(",")
        names = {name for pattern in patterns for name in self._named(pattern, shapes)}
        return frozenset(names | {EMBEDDING, HEAD} if self.tied and names & {EMBEDDING, HEAD} else names)

    def _named(self, pattern: str, shapes: Shapes) -> list[str]:
        part = pattern.removeprefix("transformer.")
        parts = [part]
        if match := re.fullmatch(r"h\.([^.*]+)(.*)", part):
            try:
                parts = [f"h.{layer}{match[2]}" for layer in parse_layers(match[1], self.config.n_layer)]
            except UserError as error:  # the syntax is that of `inheritune slice`, whose flag has another name
                told = str(error).replace("--layers ", "--train.trainable h.", 1).replace("the reference", "the model")
                raise UserError(told) from error
        short = {name: name.removeprefix("transformer.") for name in shapes}
        found = [name for name in shapes if any(fnmatchcase(short[name], f"{each}.*") for each in parts)]
        if not found:
            there = dict.fromkeys(each.rpartition(".")[0] for each in short.values())
            outer = ", ".join(each for each in there if not each.startswith("h."))
            inner = ", ".join(each[len("h.0.") :] for each in there if each.startswith("h.0."))
            has = f"{outer} and h.0-{self.config.n_layer - 1} with {inner}"
            raise UserError(f"--train.trainable {self.trainable}: {pattern!r} names nothing of the model; it has {has}")
        return found

    def count(self, trained: bool = False, embeddings: bool = True) -> int:
        """Number of parameters, a tied head counted once: all, or those that are trained; with those of the token
        embedding and learned positions or without."""
        shapes = tensor_shapes(self.config, self.tied)
        left_out = () if embeddings else (EMBEDDING, _POSITIONS)
        names = (name for name in shapes if name not in left_out and (not trained or name in self.names))
        return sum(math.prod(shapes[name]) for name in names)

    def flops_per_token(self, block_size: int) -> float:
        """FLOPs of training per token, those that frozen parameters save left out."""
        return flops_per_token(self.config, block_size, self.names if self.trainable else None)

    def freeze(self, gpt: GPT) -> None:
        """Has autograd leave out what is frozen."""
        for name, parameter in gpt.named_parameters(remove_duplicate=False):
            parameter.requires_grad_(self.trainable is None or name in self.names)

    def __str__(self) -> str:
        layers, total = layers_reached(self.config, self.names), self.config.n_layer
        head = "the head is the embedding, so the " if self.tied and EMBEDDING in self.names else "the "
        return (
            f"trains {self.count(trained=True):,} of {self.count():,} parameters: {self.trainable}; "
            f"{head}backward pass goes through {layers} of {total} layers"
        )
