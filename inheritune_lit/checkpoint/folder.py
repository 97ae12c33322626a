"""The files of a litgpt checkpoint folder, and which of them travel from one to the next."""

import fnmatch
import json
import shutil
from collections.abc import Collection
from pathlib import Path

from inheritune_lit.errors import UserError
from inheritune_lit.io.reading import open_regular, read_json

WEIGHTS = "lit_model.pth"
MODEL_CONFIG = "model_config.yaml"
HF_CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
FINAL = "final"  # the checkpoint in the folder of a finished run
TOKENIZER_FILES = (  # of litgpt, transformers and sentencepiece for the supported architectures; ``*`` matches
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
CONFIG_FILES = (MODEL_CONFIG, HF_CONFIG, GENERATION_CONFIG)


def require_checkpoint(checkpoint_dir: Path) -> None:
    """Check that a folder is a litgpt checkpoint: one without weights or configuration is a ``UserError``."""
    if not checkpoint_dir.is_dir():
        raise UserError(f"no checkpoint folder at {checkpoint_dir}; `inheritune slice` makes one")
    check_files(checkpoint_dir)
    for name in (MODEL_CONFIG, WEIGHTS):
        if not (checkpoint_dir / name).is_file():
            remedy = suggest_final(checkpoint_dir) or "`inheritune slice` makes one"
            raise UserError(f"{checkpoint_dir} is not a litgpt checkpoint: {name} is missing; {remedy}")


def suggest_final(folder: Path) -> str | None:
    """Ask whether a run's checkpoint was meant, where somebody gives the run's folder instead of it."""
    return f"did you mean {folder / FINAL}?" if is_litgpt_folder(folder / FINAL) else None


def is_litgpt_folder(folder: Path) -> bool:
    """Whether a folder is to be read as litgpt's, not as transformers': a folder can be half of each."""
    return (folder / MODEL_CONFIG).is_file() and ((folder / WEIGHTS).is_file() or not (folder / HF_CONFIG).is_file())


def check_files(folder: Path) -> None:
    """Check that the files of a checkpoint folder are its own, and a whole model's.

    Links within the folder, and the hub cache's into its blobs, are fine. A ``UserError`` are links that lead out of
    it (their targets would be read, copied and maybe published) or in a circle; a configuration or tokenizer file that
    is a pipe, a device or a pointer of Git LFS; and an adapter, which transformers would apply to the weights.
    """
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parent.parent / "blobs")
    for path in (*folder.iterdir(), *folder.glob("*/*.jinja")):
        try:
            target = path.resolve() if path.is_symlink() else None
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path} is a symlink that leads in a circle; remove it") from error
        if target and not any(target.is_relative_to(root) for root in inside):
            raise UserError(f"{path} is a symlink out of its folder, to {target}; copy the file into the folder")
    for path in _files(folder, (*CONFIG_FILES, *TOKENIZER_FILES)):
        open_regular(path).close()
    check_no_adapter(folder, [path.name for path in folder.iterdir()])


def check_no_adapter(place: Path | str, names: Collection[str]) -> None:
    """Refuse files of an adapter among those of a folder or repository, which are not a whole model's."""
    for pattern, merge in _ADAPTERS.items():
        for name in sorted(fnmatch.filter(names, pattern)):
            # litgpt leaves its adapter beside the weights that it was merged into.
            if not (name.startswith(WEIGHTS) and WEIGHTS in names):
                remedy = f"merge it into its model first ({merge}), or remove the adapter's files"
                raise UserError(f"{place}/{name} belongs to an adapter, not to a whole model: {remedy}")


_ADAPTERS = {
    "adapter_config.json": "merge_and_unload of peft",
    "adapter_model.*": "merge_and_unload of peft",
    f"{WEIGHTS}.[al]*": "litgpt merge_lora",
}


def _files(folder: Path, names: tuple[str, ...]) -> list[Path]:
    paths = [path for name in names for path in sorted(folder.glob(name))]
    return [path for path in paths if path.exists() and not path.is_dir()]


_CODE = ("auto_map", "custom_pipelines")  # entries that name Python files of a model, which nobody copies


def copy_files(source: Path, target: Path, names: tuple[str, ...] = (*TOKENIZER_FILES, GENERATION_CONFIG)) -> list[str]:
    """Copy those of ``names`` (``*`` matches) in ``source``, checked, JSON without code; return their names."""
    check_files(source)
    found = [path.relative_to(source).as_posix() for path in _files(source, names)]
    for name in found:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
        if name.endswith("config.json"):
            content = read_json(source / name)
            if not content.keys().isdisjoint(_CODE):
                kept = {key: value for key, value in content.items() if key not in _CODE}
                (target / name).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    return found
