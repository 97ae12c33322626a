"""Tiny random references, saved as Hugging Face folders, and a hub that has them."""

from hub_fixtures import hub, small_reads
from random_models import make_gpt2, make_llama, make_neox

__all__ = ["hub", "make_gpt2", "make_llama", "make_neox", "small_reads"]
