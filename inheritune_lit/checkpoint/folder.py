"""The files of a litgpt checkpoint folder, and which of them travel from one to the next."""

import shutil
from pathlib import Path

from inheritune_lit.errors import UserError
from inheritune_lit.io.reading import open_regular, pointer_problem

WEIGHTS = "lit_model.pth"
MODEL_CONFIG = "model_config.yaml"
HF_CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
FINAL = "final"
"""The checkpoint in the folder of a finished run."""
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tekken.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
"""Every tokenizer file litgpt, transformers or sentencepiece reads for the supported architectures; ``*`` matches."""
CONFIG_FILES = (MODEL_CONFIG, HF_CONFIG, GENERATION_CONFIG)


def require_checkpoint(checkpoint_dir: Path) -> None:
    """Check that a folder is a litgpt checkpoint.

    Raises:
        UserError: the folder, its weights or its model configuration is missing.
    """
    if not checkpoint_dir.is_dir():
        raise UserError(f"no checkpoint folder at {checkpoint_dir}; `inheritune slice` makes one")
    for name in (MODEL_CONFIG, WEIGHTS):
        if not (checkpoint_dir / name).is_file():
            raise UserError(
                f"{checkpoint_dir} is not a litgpt checkpoint: {name} is missing; "
                + (suggest_final(checkpoint_dir) or "`inheritune slice` makes one")
            )


def suggest_final(folder: Path) -> str | None:
    """Ask whether a run's checkpoint was meant, where somebody gives the run's folder instead of it."""
    return f"did you mean {folder / FINAL}?" if is_litgpt_folder(folder / FINAL) else None


def is_litgpt_folder(folder: Path) -> bool:
    """Whether a folder is to be read as litgpt's, not as transformers': a folder can be half of each."""
    return (folder / MODEL_CONFIG).is_file() and ((folder / WEIGHTS).is_file() or not (folder / HF_CONFIG).is_file())


def refuse_outside_links(folder: Path) -> None:
    """Check that no file of a folder is a link to somewhere else; the hub cache's links into its blobs are fine.

    Raises:
        UserError: a link points out of the folder: its target would be read, copied and maybe published.
    """
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parent.parent / "blobs")
    for path in (*folder.iterdir(), *folder.glob("*/*.jinja")):
        if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in inside):
            raise UserError(
                f"{path} is a symlink out of its folder, to {path.resolve()}; copy the file into the folder"
            )


def copy_files(source: Path, target: Path, names: tuple[str, ...] = (*TOKENIZER_FILES, GENERATION_CONFIG)) -> list[str]:
    """Copy those of ``names`` (``*`` matches) that exist in ``source`` and return their names."""
    paths = [path for name in names for path in sorted(source.glob(name)) if path.is_file()]
    found = [path.relative_to(source).as_posix() for path in paths]
    for name in found:
        with open_regular(source / name) as file:
            if pointer := pointer_problem(file.read(64)):
                raise UserError(f"{source / name} can't be copied ({pointer})")
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return found
