"""A teacher's likeliest tokens on packed data, in files that are read by the number of the block.

A folder of two arrays without headers, in the order of the training blocks: ``ids.bin`` (uint16, or uint32 for more
than 65,536 tokens) and ``logprobs.bin`` (float16 or float32), both of shape (blocks, block_size, top_k).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from inheritune_lit.errors import UserError
from inheritune_lit.io.manifest import read_manifest

IDS, LOGPROBS = "ids.bin", "logprobs.bin"
KIND = "teacher_logits"


def id_dtype(vocabulary: int) -> np.dtype:
    """Smallest type that holds every token id."""
    return np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)


def open_arrays(folder: Path, content: dict[str, Any], mode: Literal["r", "r+", "w+"]) -> tuple[np.memmap, np.memmap]:
    """Both arrays (blocks, block_size, top_k): ids and log-probabilities.

    Args:
        content: ``settings`` of the manifest.
        mode: numpy's "r", "r+" or "w+".
    """
    shape: tuple[int, int, int] = (content["blocks"], content["block_size"], content["top_k"])
    dtypes = {IDS: id_dtype(content["vocabulary"]), LOGPROBS: np.dtype(content["dtype"])}
    ids, logprobs = (np.memmap(folder / name, dtype=dtype, mode=mode, shape=shape) for name, dtype in dtypes.items())
    return ids, logprobs


class TeacherLogits:
    """Predictions of a teacher for the blocks of a training set.

    Args:
        folder: made by ``inheritune teach``.
        expected: values that its settings have to have, such as the hash of the data.

    Attributes:
        settings: what it was made with.

    Raises:
        UserError: the folder is something else, unfinished, damaged, or of other data.
    """

    def __init__(self, folder: Path, expected: dict[str, Any]) -> None:
        manifest = read_manifest(folder) if folder.is_dir() else None
        if manifest is None or manifest.get("kind") != KIND:
            raise UserError(f"{folder} holds no teacher's predictions; make them with `inheritune teach`")
        self.settings: dict[str, Any] = manifest["settings"]
        for name, value in expected.items():
            if self.settings[name] != value:
                raise UserError(
                    f"{folder} was made with {name} {self.settings[name]!r}, this run has {value!r}; make it again "
                    "with `inheritune teach`, or change the run"
                )
        try:
            self._ids, self._logprobs = open_arrays(folder, self.settings, "r")
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} is damaged ({error}); make it again with `inheritune teach`") from error

    def batch(self, blocks: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Of some blocks: ids int64 and log-probabilities fp32, both (blocks, block_size, top_k)."""
        ids_BTK, logprobs_BTK = self._ids[blocks], self._logprobs[blocks]
        return torch.from_numpy(ids_BTK.astype(np.int64)), torch.from_numpy(logprobs_BTK.astype(np.float32))
