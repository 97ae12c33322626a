"""The models of a configuration: litgpt's GPT, and GPT-2 on litgpt's blocks."""

import torch
from litgpt.model import GPT, batched_index_select

from inheritune_lit.checkpoint.config import Config, GPT2Config
from inheritune_lit.model.forward import embed, hidden_states


class Transformer(GPT):
    """litgpt's GPT with a second entrance, which stops before the head.

    It is a method because sharding (FSDP) gathers parameters where a registered method of a module is called.
    """

    def hidden_states(self, idx: torch.Tensor) -> torch.Tensor:
        """What goes into the head, (B, T, n_embd), for token ids (B, T)."""
        return hidden_states(self, idx)


class GPT2(Transformer):
    """litgpt's GPT with learned positions and GPT-2's inverse-layer attention scale.

    Rotary positions are off (``rotary_percentage=0``). The head is tied where the checkpoint's head is.
    """

    config: GPT2Config

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.transformer["wpe"] = torch.nn.Embedding(config.block_size, config.n_embd)
        for layer, block in enumerate(self.transformer.h):
            # litgpt multiplies the attention logits by mscale twice.
            block.attn.mscale = config.attention_divisor(layer) ** -0.5

    def forward(
        self,
        idx: torch.Tensor,
        input_pos: torch.Tensor | None = None,
        input_pos_maxp1: int | None = None,
        lm_head_chunk_size: int = 0,
    ) -> torch.Tensor | list[torch.Tensor]:
        """Logits; arguments and results are those of ``GPT.forward``.

        Args:
            idx: token ids, shape (B, T).
            input_pos: positions, shape (T,) or (B, T), when the key-value cache is used.
            input_pos_maxp1: largest position plus 1.
            lm_head_chunk_size: positions per chunk of logits; 0 for one tensor.

        Returns:
            Shape (B, T, padded_vocab_size), or a list of chunks along T.
        """
        T = idx.size(1)
        if self.max_seq_length < T:
            raise ValueError(f"Cannot forward sequence of length {T}, max seq length is only {self.max_seq_length}.")
        mask = None
        if input_pos is None:
            input_pos_maxp1 = None
        else:
            if self.mask_cache is None:
                raise TypeError("You need to call `gpt.set_kv_cache()`")
            mask = batched_index_select(self.mask_cache, 2, input_pos)
            if mask.dim() > 4:
                mask = mask.view(*(mask.shape[0:1] + mask.shape[2:]))
            mask = mask if input_pos_maxp1 is None else mask[..., :input_pos_maxp1]
        x_BTC = embed(self, idx, input_pos)
        # Without rotary dimensions the tables have width 0.
        cos, sin = self.cos[:T].unsqueeze(0), self.sin[:T].unsqueeze(0)
        for block in self.transformer.h:
            x_BTC = block(x_BTC, cos, sin, mask, input_pos, input_pos_maxp1)
        x_BTC = self.transformer.ln_f(x_BTC)
        if lm_head_chunk_size > 0:
            return [self.lm_head(x) for x in x_BTC.split(lm_head_chunk_size, dim=1)]
        return self.lm_head(x_BTC)


def build_model(config: Config) -> Transformer:
    """The model of a configuration: ``GPT2`` for ``GPT2Config``, litgpt's ``GPT`` otherwise."""
    return GPT2(config) if isinstance(config, GPT2Config) else Transformer(config)
