"""Tables of docs/ that are made from the code; ``make docs`` writes them anew."""

import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser

from inheritune_lit.checkpoint.architectures.table import ARCHITECTURES
from inheritune_lit.cli import COMMANDS
from inheritune_lit.io.arguments import first_argument, kinds_of
from inheritune_lit.references import REFERENCES
from inheritune_lit.train.gpus import DATA_SHEETS

DOCS = Path(__file__).parents[2] / "docs"
_TYPES = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path", dict: "mapping"}
_FAMILIES = {  # model_type: what people call it, and which models are of it
    "llama": ("LLaMA 1-3", "OpenLLaMA, TinyLlama, SmolLM 1-2"),
    "mistral": ("Mistral", "with its sliding window"),
    "mixtral": ("Mixtral", "mixture of experts"),
    "qwen2": ("Qwen2", "Qwen2 and Qwen2.5"),
    "qwen3": ("Qwen3", "the dense models"),
    "qwen3_moe": ("Qwen3-MoE", "mixture of experts"),
    "phi3": ("Phi-3 and Phi-4", ""),
    "olmo": ("OLMo 1", ""),
    "olmo2": ("OLMo 2", ""),
    "gemma": ("Gemma 1", ""),
    "gemma2": ("Gemma 2", "soft-capped attention"),
    "gemma3_text": ("Gemma 3", "the text models; each layer with its own window and rotary base"),
    "stablelm": ("StableLM", ""),
    "gpt_neox": ("GPT-NeoX", "Pythia"),
    "falcon": ("Falcon", "with one norm per layer or two"),
    "phi": ("Phi 1 to 2", ""),
    "gpt2": ("GPT-2", "OpenAI's and the paper's; litgpt lacks it, so this program brings the model"),
}


def rewrite(page: str) -> str:
    """A page with each part between ``<!-- made by NAME -->`` and ``<!-- end -->`` made anew."""
    return re.sub(
        r"(<!-- made by (\w+) -->\n).*?(?=<!-- end -->)",
        lambda found: found[1] + "\n" + "\n".join(_MAKERS[found[2]]()) + "\n\n",
        page,
        flags=re.DOTALL,
    )


def _flags() -> Iterator[str]:
    groups: dict[str, type] = {}
    for name, (kind, _) in COMMANDS.items():
        if not fields(kind):
            continue
        yield from (f"## {name}", "", "| flag | takes | default | |", "|---|---|---|---|")
        first, help_of = first_argument(kind), _help_of(kind)
        for field in fields(kind):
            of = get_type_hints(kind)[field.name]
            if is_dataclass(of):
                groups[field.name] = of
                changes = _changes(field, of)
                yield f"| `--{field.name}.*` | [group](#--{field.name}) | {changes} | {help_of[field.name]} |"
            else:
                positional = f"`{field.name.upper()}` or " if field.name == first else ""
                yield f"| {positional}{_row(field, of, help_of, '')}"
        yield ""
    for group, of in groups.items():
        yield from (f"## --{group}", "", "| flag | takes | default | |", "|---|---|---|---|")
        hints, help_of = get_type_hints(of), _help_of(of)
        yield from (f"| {_row(field, hints[field.name], help_of, f'{group}.')}" for field in fields(of))
        yield ""


def _row(field: Field, of: Any, help_of: dict[str, str], prefix: str) -> str:
    takes = ", ".join(dict.fromkeys(_takes(kind) for kind in kinds_of(of) if kind is not NoneType))
    return f"`--{prefix}{field.name}` | {takes} | {_default(field)} | {help_of[field.name]} |"


def _takes(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(kind))
    if get_origin(kind) in (list, tuple):
        return f"one or more: {_takes(get_args(kind)[0])}"
    return _TYPES[get_origin(kind) or kind]


def _default(field: Field) -> str:
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if value is MISSING:
        return "required"
    return "" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _changes(field: Field, of: type) -> str:
    """The values of a group that are not the group's own defaults."""
    value = field.default if field.default_factory is MISSING else field.default_factory()
    differing = [each.name for each in fields(of) if getattr(value, each.name) != getattr(of(), each.name)]
    return ", ".join(f"`{name} {getattr(value, name)}`" for name in differing)


def _help_of(kind: type) -> dict[str, str]:
    params = [param for of in reversed(kind.__mro__[:-1]) for param in docstring_parser.parse_from_object(of).params]
    told = {param.arg_name: " ".join((param.description or "").split()) for param in params}
    return {name: text.replace("``", "`").replace("|", "\\|").replace("<name>", "NAME") for name, text in told.items()}


def _architectures() -> Iterator[str]:
    yield from ("| family | `model_type` | class in transformers | |", "|---|---|---|---|")
    for model_type, class_name in dict.fromkeys((each.model_type, each.class_name) for each in ARCHITECTURES):
        name, remark = _FAMILIES[model_type]
        yield f"| {name} | `{model_type}` | `{class_name}` | {remark} |"


def _references() -> Iterator[str]:
    yield from ("| name | layers | width | parameters | licence | repository |", "|---|--:|--:|--:|---|---|")
    for one in REFERENCES:
        licence = one.licence + (", gated" if one.gated else "")
        yield f"| `{one.name}` | {one.layers} | {one.width} | {one.parameters:,} | {licence} | {one.repository} |"


def _gpus() -> Iterator[str]:
    yield from ("| `--gpu` | memory | CUDA's names, without maker and form | dense bf16 peak |", "|---|--:|---|--:|")
    for names, rate, sizes in DATA_SHEETS:
        memory = ", ".join(f"{size} GB" for size in sizes.values())
        yield f"| {', '.join(f'`{name}`' for name in sizes)} | {memory} | {', '.join(names)} | {rate:,} TFLOP/s |"


_MAKERS = {"flags": _flags, "architectures": _architectures, "references": _references, "gpus": _gpus}

if __name__ == "__main__":
    for path in DOCS.glob("*.md"):
        path.write_text(rewrite(path.read_text(encoding="utf-8")), encoding="utf-8")
