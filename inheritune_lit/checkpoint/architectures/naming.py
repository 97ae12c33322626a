"""Names that litgpt reads as it should: its norms and its converters go by the model's name."""

import re

from inheritune_lit.checkpoint.architectures.base import Architecture

OTHERS = r"(?!.*(falcon|Gemma|OLMo))(?!(?i:phi|qwen2\.5|qwq|qwen3|olmo-2-))"
"""Beginning of a pattern that leaves out every name that litgpt treats specially."""


def litgpt_name(architecture: Architecture, name: str) -> str:
    """The name itself, or one near to it that litgpt takes for this architecture."""
    for candidate in (name, name[:1].upper() + name[1:], f"{architecture.litgpt_name}-{name}"):
        if re.match(architecture.litgpt_names, candidate):
            return candidate
    return architecture.litgpt_name
