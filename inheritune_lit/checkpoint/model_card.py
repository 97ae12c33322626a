"""The README of an exported model: where it comes from and what may be done with it."""

from typing import Any

from inheritune_lit.checkpoint.litgpt_config import Config
from inheritune_lit.references import REFERENCES


def model_card(config: Config, origin: dict[str, Any], parameters: int, licence: str | None) -> str:
    """Markdown with the front matter that the hub reads.

    Args:
        config: the model's configuration.
        origin: manifest of the checkpoint; empty where there is none.
        parameters: number of parameters.
        licence: identifier of the licence; the named reference's when None.
    """
    source, layers, tokens = lineage(origin)
    repository = f"{source.get('org')}/{source.get('name')}"
    known = next((reference for reference in REFERENCES if reference.repository == repository), None)
    licence = licence or (known.licence if known else None)
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    front += [f"license: {licence}"] if licence else []
    front += [f"base_model: {repository}"] if source and source.get("org") != "local" else []
    lines = [
        f"# {config.hf_config.get('name') or config.name}",
        f"A decoder with {config.n_layer} layers, width {config.n_embd} and {parameters:,} parameters,"
        " made with the Inheritune recipe (arXiv 2404.08634).",
        f"* Reference: {repository if source else 'not recorded'}"
        + (f", {source['n_layer']} layers" if source.get("n_layer") else ""),
        f"* Inherited layers: {', '.join(map(str, layers)) if layers else 'none'}",
        f"* Tokens trained after inheriting: {f'{tokens:,}' if tokens else 'none recorded'}",
        f"* Licence: {licence or 'that of the reference, which is not known here'}",
    ]
    if config.attention_logit_softcapping is not None:
        lines.append(
            '* transformers leaves out the soft-capping of attention logits unless `attn_implementation="eager"`.'
        )
    return "\n".join([*front, "---", "", lines[0], "", lines[1], "", *lines[2:], ""])


def lineage(manifest: dict[str, Any]) -> tuple[dict[str, Any], list[int] | None, int]:
    """Follow the manifests back to the reference.

    Returns:
        The first reference's record, its layer behind each layer of the model (None where unknown or random), and the
        tokens trained on since.
    """
    source: dict[str, Any] = {}
    layers: list[int] | None = None
    tokens, random = 0, False
    current: dict[str, Any] | None = manifest
    while current:
        tokens += 0 if random else current.get("tokens", 0)
        if current.get("kind") == "slice":
            source, own = current["reference"], current["layers"]
            random = random or own is None
            layers = None if random else [own[layer] for layer in layers] if layers is not None else own
        current = current.get("parent")
    return source, layers, tokens
