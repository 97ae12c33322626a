"""A model of which one layer at a time is in memory, and its activations, which wait on the disk."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from litgpt.model import Block
from torch.nn import functional as F

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.tensors import EMBEDDING, HEAD
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.load import read_tensor
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.model.forward import embed, head_logits, rope_of_layer
from inheritune_lit.model.gpt import build_model


class ActivationStore:
    """Activations by name, fp32, on the disk: those of a deep model do not fit into memory together.

    Args:
        folder: an empty folder of their own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, x_BTC: torch.Tensor) -> None:
        """Keep an activation; it replaces an earlier one of that name."""
        np.save(self._folder / f"{name}.npy", x_BTC.cpu().numpy(), allow_pickle=False)

    def get(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """An activation of some sequences, on the CPU."""
        mapped = np.load(self._folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return torch.from_numpy(np.array(mapped[start:stop]))


def check_capturable(config: Config) -> None:
    """Check that a model's attention is made of matrices of softmax weights, one per head.

    Raises:
        UserError: it is not.
    """
    if config.latent_attention or config.n_layer < 1:
        kind = "latent attention" if config.latent_attention else "no layers"
        raise UserError(
            f"{config.name} has {kind}: there are no attention weights to capture; give a model of the LLaMA or GPT-2 "
            "kind"
        )


RunBlock = Callable[[torch.Tensor], torch.Tensor]
_LOGITS = 1 << 25
"""Most logits held at once."""
_TOKENS = 1 << 10
"""Tokens that a layer is run on at a time."""


class LayerStream:
    """litgpt's model of a checkpoint in fp32, of which embeddings, one layer, or the head are in memory.

    Args:
        reference: the opened checkpoint, in any format that ``inheritune slice`` reads.
        seq_length: tokens per sequence.
        device: where it computes.
    """

    def __init__(self, reference: ReferenceModel, seq_length: int, device: torch.device) -> None:
        self.config, self.device = reference.config, device
        self._reference = reference
        with torch.device("meta"):
            self._model = build_model(self.config).requires_grad_(False)
        self._model.max_seq_length = seq_length
        cos, sin = self._model.rope_cache(device=device)
        self._rope = cos[:seq_length].unsqueeze(0), sin[:seq_length].unsqueeze(0)
        self._has_head = False

    @property
    def query_and_key_sizes(self) -> tuple[int, int]:
        """Outputs of the joint projection that are queries and keys; values come after them."""
        return self.config.n_head * self.config.head_size, self.config.n_query_groups * self.config.head_size

    def embed(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Input of the first layer, (B, T, C)."""
        if "wpe" in self._model.transformer:
            self._load(self._model.transformer.wpe, "transformer.wpe.")

        def rows_of(tokens_BT: torch.Tensor) -> torch.Tensor:
            return self._tensor(EMBEDDING)[tokens_BT].to(self.device, torch.float32)

        return embed(self._model, tokens_BT, rows_of=rows_of)

    @contextmanager
    def layer(self, number: int) -> Iterator[tuple[Block, RunBlock]]:
        """One layer with its weights and the function (B, T, C) -> (B, T, C) that it computes; gone after the block."""
        # Otherwise the pages of the layers before would count as this process's memory.
        self._reference = self._reference.remapped()
        block = self._model.transformer.h[number]
        self._load(block, f"transformer.h.{number}.")
        rope = rope_of_layer(self._model, self._rope, number)
        try:
            yield block, lambda x_BTC: block(x_BTC, *rope)
        finally:
            block.to(device="meta")

    def losses(self, x_BTC: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of each sequence in nats per token, (B,), fp64, of a model that ends here: norm and head.

        This is the loss of ``inheritune slice --n`` before training, where ``x_BTC`` is the output of layer n - 1.

        Args:
            x_BTC: output of a layer.
            targets_BT: the tokens that follow.
        """
        self._load_head()
        T, vocabulary = targets_BT.shape[1], self.config.padded_vocab_size
        rows = max(1, _LOGITS // (T * vocabulary))
        losses = []
        for x_bTC, targets_bT in zip(x_BTC.split(rows), targets_BT.split(rows), strict=True):
            logits_bTV = head_logits(self._model, self._model.transformer.ln_f(x_bTC))
            # Flat: the layout that (b, V, T) asks for is several times slower.
            loss_N = F.cross_entropy(logits_bTV.flatten(0, 1), targets_bT.flatten().to(self.device), reduction="none")
            losses.append(loss_N.view(targets_bT.shape).double().mean(dim=1))
        return torch.cat(losses)

    def chunks(self, sequences: int) -> list[slice]:
        """Sequences that a layer is run on at a time."""
        step = max(1, _TOKENS // self._model.max_seq_length)
        return [slice(start, min(start + step, sequences)) for start in range(0, sequences, step)]

    def in_chunks(self, run: RunBlock, x_BTC: torch.Tensor) -> torch.Tensor:
        """Run a layer on activations, which are overwritten."""
        for rows in self.chunks(len(x_BTC)):
            x_BTC[rows] = run(x_BTC[rows])
        return x_BTC

    def loss_gradient(self, x_BTC: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Gradient of each sequence's loss with respect to the output of the last layer, (B, T, C)."""
        gradients = []
        for x_1TC, targets_1T in zip(x_BTC.split(1), targets_BT.split(1), strict=True):
            x_1TC = x_1TC.detach().requires_grad_()
            with torch.enable_grad():
                loss = self.losses(x_1TC, targets_1T).sum()
            gradients += torch.autograd.grad(loss, x_1TC)
        return torch.cat(gradients)

    def _load_head(self) -> None:
        if self._has_head:
            return
        self._load(self._model.transformer.ln_f, "transformer.ln_f.")
        head = {"weight": self._tensor(HEAD if HEAD in self._reference.shapes else EMBEDDING)}
        if self.config.lm_head_bias:
            head["bias"] = self._tensor("lm_head.bias")
        self._assign(self._model.lm_head, head)
        self._has_head = True

    def _load(self, module: torch.nn.Module, prefix: str) -> None:
        names = [name for name in self._reference.shapes if name.startswith(prefix)]
        self._assign(module, {name.removeprefix(prefix): self._tensor(name) for name in names})

    def _assign(self, module: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
        on_device = {name: tensor.to(self.device, torch.float32) for name, tensor in state.items()}
        module.load_state_dict(on_device, strict=True, assign=True)

    def _tensor(self, name: str) -> torch.Tensor:
        return read_tensor(self._reference, name)
