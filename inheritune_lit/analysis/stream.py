"""Hidden states that wait on the disk: a deep model's don't fit into memory together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType

import numpy as np
import torch
from litgpt.model import Block, CausalSelfAttention, do_softcapping
from torch.nn import functional as F

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.tensors import EMBEDDING, HEAD
from inheritune_lit.checkpoint.weights import Weights
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.load import read_tensor
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.model.gpt2 import build_model


class StateStore:
    """Hidden states by name, fp32.

    Args:
        folder: an empty folder of their own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, x_BTC: torch.Tensor) -> None:
        """Keep a state, in place of the former one of that name."""
        np.save(self._folder / f"{name}.npy", x_BTC.cpu().numpy(), allow_pickle=False)

    def get(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Some sequences of a state, on the CPU."""
        mapped = np.load(self._folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return torch.from_numpy(np.array(mapped[start:stop]))


Receiver = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Takes logits (B, H, T, T) without a mask, attention (B, H, T, T) and head outputs (B, H, T, head size), all fp32."""


def check_capturable(config: Config) -> None:
    """Check that a model's attention is made of matrices of softmax weights, one a head.

    Raises:
        UserError: it is not.
    """
    if config.latent_attention or config.n_layer < 1:
        kind = "latent attention" if config.latent_attention else "no layers"
        raise UserError(
            f"{config.name} has {kind}: there are no attention weights to capture; give a model of the LLaMA or GPT-2 "
            "kind"
        )


@contextmanager
def capture(attention: CausalSelfAttention, receive: Receiver) -> Iterator[None]:
    """Make a litgpt attention module compute plainly and hand its matrices over, within the block.

    The matrices of one call are gone when the next is made unless ``receive`` keeps them.
    """
    attention.scaled_dot_product_attention = MethodType(_plain_attention(receive), attention)
    try:
        yield
    finally:
        del attention.scaled_dot_product_attention


def _plain_attention(receive: Receiver) -> Callable[..., torch.Tensor]:
    def attend(
        self: CausalSelfAttention,
        q_BHTD: torch.Tensor,
        k_BHTD: torch.Tensor,
        v_BHTD: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """litgpt's method of the same place; result (B, T, H, head size)."""
        scale = (self.config.attention_scores_scalar or self.config.head_size) ** -0.5 * self.mscale**2
        # Multi-query models come with a single key and value for all heads.
        logits_BHTT = q_BHTD.float() @ k_BHTD.float().mT * scale
        if self.config.attention_logit_softcapping is not None:
            logits_BHTT = do_softcapping(logits_BHTT, self.config.attention_logit_softcapping)
        T = logits_BHTT.shape[-1]
        if mask is None:
            allowed = torch.ones(T, T, dtype=torch.bool, device=q_BHTD.device).tril()
            attention_BHTT = logits_BHTT.masked_fill(~allowed, -torch.inf).softmax(dim=-1)
        else:
            attention_BHTT = (logits_BHTT + mask).softmax(dim=-1)
        heads_BHTD = attention_BHTT @ v_BHTD.float()
        receive(logits_BHTT, attention_BHTT, heads_BHTD)
        return heads_BHTD.to(q_BHTD.dtype).transpose(1, 2)

    return attend


RunBlock = Callable[[torch.Tensor], torch.Tensor]
_LOGITS = 1 << 25
"""Most logits held at once."""
_TOKENS = 1 << 10
"""Tokens that a layer is run on at a time."""


class LayerStream:
    """litgpt's model of a checkpoint in fp32, of which embeddings, one layer, or the head are in memory.

    Args:
        reference: the checkpoint, in any format that ``inheritune slice`` reads.
        weights: all of its tensors, mapped.
        seq_length: tokens a sequence.
        device: where it computes.
    """

    def __init__(self, reference: ReferenceModel, weights: Weights, seq_length: int, device: torch.device) -> None:
        self.config, self.device = reference.config, device
        self._reference, self._weights = reference, weights
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
        """What goes into the first layer, (B, T, C)."""
        x_BTC = self._tensor(EMBEDDING)[tokens_BT].to(self.device, torch.float32)
        if self.config.scale_embeddings:
            x_BTC = x_BTC * self.config.n_embd**0.5
        if "wpe" in self._model.transformer:
            positions_TC = self._tensor("transformer.wpe.weight")[: tokens_BT.shape[1]]
            x_BTC = x_BTC + positions_TC.to(self.device, torch.float32)
        return x_BTC

    @contextmanager
    def layer(self, number: int) -> Iterator[tuple[Block, RunBlock]]:
        """One layer with its weights, and the function (B, T, C) -> (B, T, C) that it is; gone after the block."""
        # Otherwise the pages of the layers before would count as this process's memory.
        self._weights = self._weights.remapped()
        block = self._model.transformer.h[number]
        self._load(block, f"transformer.h.{number}.")
        cos, sin = self._rope
        if (indices := self.config.rope_indices) is not None:
            cos, sin = cos[..., indices[number]], sin[..., indices[number]]
        try:
            yield block, lambda x_BTC: block(x_BTC, cos, sin)
        finally:
            block.to(device="meta")

    def losses(self, x_BTC: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of each sequence in nats a token, (B,), fp64, of a model that ends here: norm and head.

        This is the loss of ``inheritune slice --n`` before training, where ``x_BTC`` comes out of layer n - 1.

        Args:
            x_BTC: what comes out of a layer.
            targets_BT: the tokens that follow.
        """
        self._load_head()
        T, vocabulary = targets_BT.shape[1], self.config.padded_vocab_size
        rows = max(1, _LOGITS // (T * vocabulary))
        losses = []
        for x_bTC, targets_bT in zip(x_BTC.split(rows), targets_BT.split(rows), strict=True):
            logits_bTV = self._model.lm_head(self._model.transformer.ln_f(x_bTC))
            if self.config.final_logit_softcapping is not None:
                logits_bTV = do_softcapping(logits_bTV, self.config.final_logit_softcapping)
            # Flat: the layout that (b, V, T) asks for is several times slower.
            loss_N = F.cross_entropy(logits_bTV.flatten(0, 1), targets_bT.flatten().to(self.device), reduction="none")
            losses.append(loss_N.view(targets_bT.shape).double().mean(dim=1))
        return torch.cat(losses)

    def chunks(self, sequences: int) -> list[slice]:
        """Rows of states that a layer is run on at a time."""
        step = max(1, _TOKENS // self._model.max_seq_length)
        return [slice(start, min(start + step, sequences)) for start in range(0, sequences, step)]

    def in_chunks(self, run: RunBlock, x_BTC: torch.Tensor) -> torch.Tensor:
        """Run a layer on states, which are overwritten."""
        for rows in self.chunks(len(x_BTC)):
            x_BTC[rows] = run(x_BTC[rows])
        return x_BTC

    def loss_gradient(self, x_BTC: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Gradient of each sequence's loss with respect to what comes out of the last layer, (B, T, C)."""
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
        return read_tensor(self._reference, self._weights, name)
