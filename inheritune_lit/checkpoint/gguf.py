"""GGUF files, through transformers: the whole model is dequantised, so memory is that of the model."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.checkpoint.folder import HF_CONFIG, MODEL_CONFIG
from inheritune_lit.errors import UserError, first_line


def find_gguf(ref: Path) -> Path | None:
    """The GGUF file that a reference means: itself, or the only one of a folder without other weights."""
    if ref.suffix == ".gguf" and ref.is_file():
        return ref
    if not ref.is_dir() or (ref / HF_CONFIG).exists() or (ref / MODEL_CONFIG).exists():
        return None
    found = sorted(ref.glob("*.gguf"))
    if len(found) > 1:
        raise UserError(f"{ref} holds {len(found)} GGUF files; give one of them with --ref, such as {found[0]}")
    return found[0] if found else None


@contextmanager
def as_huggingface(path: Path) -> Iterator[Path]:
    """A temporary Hugging Face folder with the file's model in bfloat16 and its tokenizer.

    Raises:
        UserError: transformers or gguf is not installed, or the file is damaged or of an unknown architecture.
    """
    missing = [name for name in ("transformers", "gguf") if find_spec(name) is None]
    if missing:
        raise UserError(f"reading {path} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{path} is not a GGUF file; get it again")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    source["local_files_only"] = True
    with tempfile.TemporaryDirectory(prefix="inheritune-gguf-") as name:
        folder = Path(name)
        try:
            # Under Python 3.10 transformers cannot find gguf's version: it asks the module, which does not say.
            vars(import_module("gguf")).setdefault("__version__", version("gguf"))
            model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
            model.save_pretrained(folder, max_shard_size="2GB")
        except Exception as error:  # a damaged file fails anywhere in gguf, numpy or transformers
            raise UserError(
                f"{path} cannot be read ({first_line(error)}); get it again, or give a safetensors checkpoint"
            ) from error
        del model
        try:
            AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
            # Some versions copy the GGUF file itself under the name of a SentencePiece model.
            (folder / "tokenizer.model").unlink(missing_ok=True)
        except Exception as error:
            raise UserError(
                f"{path} has no readable tokenizer ({first_line(error)}); give a safetensors checkpoint"
            ) from error
        yield folder
