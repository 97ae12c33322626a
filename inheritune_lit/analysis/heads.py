"""What one layer's heads do, sequence by sequence."""

from dataclasses import dataclass, field

import torch
from litgpt.model import CausalSelfAttention

from inheritune_lit.analysis.columns import attention_mass, entropy, entropy_without_sink, sink_mass
from inheritune_lit.analysis.rank import attention_rank
from inheritune_lit.errors import UserError


@dataclass
class HeadMeasures:
    """Collects the measures of a layer's heads from the matrices of its attention, some sequences at a time.

    Args:
        layer: its number, for errors.
        attention: the module, whose weights write what the heads say.
        tau: threshold of rank and mass.
    """

    layer: int
    attention: CausalSelfAttention
    tau: float
    _parts: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def add(self, attention_BHTT: torch.Tensor, heads_BHTD: torch.Tensor) -> None:
        """Measure some sequences.

        Raises:
            UserError: the attention holds what is not a number.
        """
        if not attention_BHTT.isfinite().all():
            raise UserError(
                f"the attention of layer {self.layer} holds NaN: the checkpoint is damaged, or "
                "its activations overflow; get it again, or look for NaN in its weights"
            )
        B, H, T, _ = attention_BHTT.shape
        attention_NTT = attention_BHTT.reshape(B * H, T, T)
        measured = {
            "attention_rank": attention_rank(attention_NTT, self.tau).view(B, H),
            "attention_mass": attention_mass(attention_NTT, self.tau).view(B, H),
            "entropy": entropy(attention_BHTT),
            "entropy_without_sink": entropy_without_sink(attention_BHTT),
            "sink_mass": sink_mass(attention_BHTT),
            "head_output_norm": head_output_norm(heads_BHTD, self.attention.proj.weight),
        }
        for name, values_BH in measured.items():
            self._parts.setdefault(name, []).append(values_BH.double().cpu())

    def result(self) -> dict[str, torch.Tensor]:
        """Measures of all sequences so far by name, (B, H) each, fp64."""
        return {name: torch.cat(parts) for name, parts in self._parts.items()}


def head_output_norm(heads_BHTD: torch.Tensor, proj_CI: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of the norm of what each head writes into the residual stream, (B, H).

    Kobayashi et al. 2020 (arXiv 2004.10102). Norms are taken through W_O^T W_O of the head, which is small.

    Args:
        heads_BHTD: attention times values.
        proj_CI: W_O of all heads side by side, I = H D.
    """
    H, D = heads_BHTD.shape[1], heads_BHTD.shape[3]
    proj_HCD = proj_CI.view(-1, H, D).transpose(0, 1)
    gram_HDD = proj_HCD.mT @ proj_HCD
    squares_BHT = (heads_BHTD @ gram_HDD * heads_BHTD).sum(dim=-1)
    return squares_BHT.clamp(min=0).sqrt().mean(dim=-1)
