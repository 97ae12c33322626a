"""Tiny random references, saved as Hugging Face folders."""

from random_models import make_gpt2, make_llama

__all__ = ["make_gpt2", "make_llama"]
