"""Arguments of the advice on n. Free of torch so that ``--help`` is instant."""

from dataclasses import dataclass


@dataclass
class AdviceArgs:
    """The training that a slice is to get, for its cost."""

    max_tokens: int = 1_000_000_000
    """Tokens it is trained on"""
    gpu: str = "a100-80gb"
    """GPU, such as a6000, a100-80gb, h100, rtx4090"""
    mfu: float = 0.5
    """Share of the GPU's bf16 peak that training reaches"""
    micro_batch_size: int = 1
    """Samples a forward pass, for the memory"""
    max_seq_length: int | None = None
    """Tokens a sample; the model's block size, at most 2048, when not given"""
