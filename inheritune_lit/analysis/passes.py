"""Passes through a model of which one layer at a time is in memory: forward, backward, and without some layers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litgpt.model import Block
from torch import Tensor
from torch.nn import functional as F

from inheritune_lit.analysis.measures import MapCollector, block_influence, measure_heads, output_variance
from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.tensors import EMBEDDING
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.model.attention import capture_attention
from inheritune_lit.model.gpt import build_model, embed, head_logits, rope_of_layer


class ActivationStore:
    """Keeps activations by name, fp32, in a new folder: those of a deep model do not fit into memory together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)

    def put(self, name: str, x_BTC: Tensor) -> None:
        """Keeps an activation; it replaces an earlier one of that name."""
        np.save(self._folder / f"{name}.npy", x_BTC.cpu().numpy(), allow_pickle=False)

    def get(self, name: str, rows: slice) -> Tensor:
        """Returns an activation of some sequences, on the CPU."""
        mapped = np.load(self._folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return torch.from_numpy(np.array(mapped[rows]))


def check_capturable(config: Config) -> None:
    """Refuses a model whose attention is not made of matrices of softmax weights, one per head."""
    if config.latent_attention or config.n_layer < 1:
        kind = "latent attention" if config.latent_attention else "no layers"
        remedy = "there are no attention weights to capture; give a model of the LLaMA or GPT-2 kind"
        raise UserError(f"{config.name} has {kind}: {remedy}")


RunBlock = Callable[[Tensor], Tensor]
_LOGITS = 1 << 25  # most logits that are in memory at a time
_TOKENS = 1 << 10  # tokens per call of a layer


class LayerStream:
    """A reference's model in fp32, one part in memory at a time; ``report`` is called after every run of a layer."""

    def __init__(
        self, reference: ReferenceModel, seq_length: int, device: torch.device, report: Callable[[], Any] = lambda: None
    ) -> None:
        self.config, self.device, self.report, self._reference = reference.config, device, report, reference
        with torch.device("meta"):
            self._model = build_model(self.config).requires_grad_(False)
        self._model.max_seq_length = seq_length
        cos, sin = self._model.rope_cache(device=device)
        self._rope = cos[:seq_length].unsqueeze(0), sin[:seq_length].unsqueeze(0)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Returns the input of the first layer, (B, T, C)."""
        if "wpe" in self._model.transformer:
            self._load(self._model.transformer.wpe, "transformer.wpe.")
        rows_BTC = self._reference.tensor(EMBEDDING)[tokens_BT].to(self.device, torch.float32)
        return embed(self._model, tokens_BT, rows_BTC=rows_BTC)

    @contextmanager
    def layer(self, number: int) -> Iterator[tuple[Block, RunBlock]]:
        """Yields a layer with its weights in memory, and the function (B, T, C) -> (B, T, C) that it computes."""
        # Otherwise the pages of the layers before would count as this process's memory.
        self._reference = self._reference.remapped()
        block = self._model.transformer.h[number]
        self._load(block, f"transformer.h.{number}.")
        rope = rope_of_layer(self._model, self._rope, number)
        try:
            yield block, lambda x_BTC: block(x_BTC, *rope)
        finally:
            block.to(device="meta")

    def losses(self, x_BTC: Tensor, targets_BT: Tensor) -> Tensor:
        """Returns each sequence's mean cross-entropy in nats per token, (B,), fp64, of a model that ends after a layer,
        whose output is ``x_BTC``. After layer n - 1 this is the loss of an untrained slice of n layers."""
        if self._model.lm_head.weight.is_meta:
            self._load(self._model.transformer.ln_f, "transformer.ln_f.")
            self._load(self._model.lm_head, "lm_head.", weight=EMBEDDING)
        T, vocabulary = targets_BT.shape[1], self.config.padded_vocab_size
        rows = max(1, _LOGITS // (T * vocabulary))
        losses = []
        for x_bTC, targets_bT in zip(x_BTC.split(rows), targets_BT.to(self.device).split(rows), strict=True):
            logits_bTV = head_logits(self._model, self._model.transformer.ln_f(x_bTC))
            # Flat: the layout that (b, V, T) asks for is several times slower.
            loss_N = F.cross_entropy(logits_bTV.flatten(0, 1), targets_bT.flatten(), reduction="none")
            losses.append(loss_N.view(targets_bT.shape).double().mean(dim=1))
        return torch.cat(losses)

    def chunks(self, sequences: int) -> list[slice]:
        """Returns which sequences each call of a layer takes."""
        step = max(1, _TOKENS // self._model.max_seq_length)
        return [slice(start, min(start + step, sequences)) for start in range(0, sequences, step)]

    def loss_gradient(self, x_BTC: Tensor, targets_BT: Tensor) -> Tensor:
        """Returns the gradient of each sequence's loss with respect to the output of the last layer, (B, T, C)."""
        gradients = []
        for x_1TC, targets_1T in zip(x_BTC.split(1), targets_BT.split(1), strict=True):
            x_1TC = x_1TC.detach().requires_grad_()
            with torch.enable_grad():
                loss = self.losses(x_1TC, targets_1T).sum()
            gradients += torch.autograd.grad(loss, x_1TC)
        return torch.cat(gradients)

    def _load(self, module: torch.nn.Module, prefix: str, **tied: str) -> None:
        """Gives a module its parameters, or those of other names (``tied``) where the reference has none for it."""
        names = tied | {name.removeprefix(prefix): name for name in self._reference.shapes if name.startswith(prefix)}
        state = {own: self._reference.tensor(name).to(self.device, torch.float32) for own, name in names.items()}
        module.load_state_dict(state, strict=True, assign=True)


def measure_forward(
    stream: LayerStream, tokens_BT1: Tensor, tau: float, maps: MapCollector, store: ActivationStore | None
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Runs a model once on sequences with the token that follows each.

    ``tau`` is the threshold of rank and mass; ``store`` keeps the input of layer l under the name "l", where given.

    Returns measures by name, fp64, (B, L, H) of heads, (B, L) of layers, logit_lens_loss (B, L + 1); the last token's
    activation before each layer and after the last, fp32, (L + 1, B, C); the output of the last layer, (B, T, C).
    """
    targets_BT = tokens_BT1[:, 1:]
    x_BTC = stream.embed(tokens_BT1[:, :-1])
    last, losses = [x_BTC[:, -1].clone()], [stream.losses(x_BTC, targets_BT).cpu()]
    measured: dict[str, list[Tensor]] = {}
    for layer in range(stream.config.n_layer):
        if store is not None:
            store.put(str(layer), x_BTC)
        chunks: list[dict[str, Tensor]] = []
        with stream.layer(layer) as (block, run):
            for rows in stream.chunks(len(x_BTC)):
                with capture_attention(block.attn) as calls:
                    y_bTC = run(x_BTC[rows])
                [captured] = calls
                if rows.start == 0:
                    maps.add(layer, captured)
                chunk = measure_heads(layer, block.attn, captured, tau)
                chunk["block_influence"] = block_influence(x_BTC[rows], y_bTC)
                chunk["output_variance"] = output_variance(y_bTC)
                chunks.append(chunk)
                x_BTC[rows] = y_bTC
        for name in chunks[0]:
            measured.setdefault(name, []).append(torch.cat([chunk[name].double().cpu() for chunk in chunks]))
        last.append(x_BTC[:, -1].clone())
        losses.append(stream.losses(x_BTC, targets_BT).cpu())
        stream.report()
    measured["logit_lens_loss"] = losses
    return {name: torch.stack(values, dim=1) for name, values in measured.items()}, torch.stack(last), x_BTC


def gradient_norms(
    stream: LayerStream, store: ActivationStore, output_BTC: Tensor, targets_BT: Tensor
) -> dict[str, Tensor]:
    """Returns Frobenius norms of the gradients of each sequence's loss with respect to W_Q and W_K, (B, L) each, fp64.

    Vanishing ones mark collapsed attention (Noci et al. 2022, arXiv 2206.03126, as cited in Section 2 of the paper).
    ``store`` and ``output_BTC`` are those of ``measure_forward``.
    """
    gradient_BTC, config = stream.loss_gradient(output_BTC, targets_BT), stream.config
    # Of the joint projection; values come after queries and keys.
    sizes = config.n_head * config.head_size, config.n_query_groups * config.head_size
    norms = []
    for layer in reversed(range(config.n_layer)):
        with stream.layer(layer) as (block, run):
            parts = []
            for rows in stream.chunks(len(targets_BT)):
                x_bTC = store.get(str(layer), rows).to(stream.device).requires_grad_()
                seen: list[Tensor] = []  # the projection's input and output
                hook = block.attn.qkv.register_forward_hook(lambda _, x, y, seen=seen: seen.extend((*x, y)))
                with hook, torch.enable_grad():
                    y_bTC = run(x_bTC)
                gradient_BTC[rows], of_qkv = torch.autograd.grad(y_bTC, (x_bTC, seen[1]), gradient_BTC[rows])
                parts.append(_weight_gradient_norms(seen[0].detach(), of_qkv, sizes))
            norms.append(torch.cat(parts))
        stream.report()
    norms_LB2 = torch.stack(norms[::-1]).cpu()
    return {"grad_norm_q": norms_LB2[..., 0].T, "grad_norm_k": norms_LB2[..., 1].T}


def _weight_gradient_norms(x_bTC: Tensor, gradient_bTO: Tensor, sizes: tuple[int, int]) -> Tensor:
    """Returns norms of X^T G for the first columns of G and for the next ones, (b, 2), fp64.

    |X^T G|_F^2 = sum over pairs of tokens of (x_s . x_t)(g_s . g_t), which needs no matrix of the weights' size.
    """
    x_bTC, gradient_bTO = x_bTC.double(), gradient_bTO.double()
    products_bTT = x_bTC @ x_bTC.mT
    parts = gradient_bTO[..., : sum(sizes)].split(sizes, dim=-1)
    squares = [(products_bTT * (part_bTO @ part_bTO.mT)).sum(dim=(-2, -1)) for part_bTO in parts]
    return torch.stack(squares, dim=-1).clamp(min=0).sqrt()


def spans(layers: int, longest: int) -> list[tuple[int, int]]:
    """Returns first layer and length of every span up to a length."""
    return [(start, length) for length in range(1, min(longest, layers) + 1) for start in range(layers - length + 1)]


def losses_without_layers(
    stream: LayerStream, store: ActivationStore, targets_BT: Tensor, longest: int
) -> dict[int, Tensor]:
    """Returns each sequence's loss where the residual stream bypasses a span of layers, by length, (B, first layers).

    Spans have up to ``longest`` layers. ``store`` is that of ``measure_forward``, and gets what comes after a span;
    ``targets_BT`` are the next tokens of the first sequences.
    """
    layers, B = stream.config.n_layer, len(targets_BT)
    every = spans(layers, longest)

    def activation(start: int, length: int, layer: int) -> Tensor:
        """Input of a layer after a span that was bypassed."""
        name = str(start) if start + length == layer else f"{start}-{length}"
        return store.get(name, slice(B)).to(stream.device)

    for layer in range(layers):
        with stream.layer(layer) as (_, run):
            for start, length in every:
                if start + length <= layer:
                    x_BTC = activation(start, length, layer)
                    for rows in stream.chunks(B):
                        x_BTC[rows] = run(x_BTC[rows])
                    store.put(f"{start}-{length}", x_BTC)
                    stream.report()
    losses: dict[int, list[Tensor]] = {}
    for start, length in every:
        losses.setdefault(length, []).append(stream.losses(activation(start, length, layers), targets_BT).cpu())
    return {length: torch.stack(parts, dim=1) for length, parts in losses.items()}
