"""How a litgpt tensor of a block lies in Hugging Face files; ``base.hf_tensors`` turns it round."""

from dataclasses import dataclass

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.tensors import Piece


@dataclass(frozen=True)
class LitTensor:
    """A tensor of a litgpt block, of which a source says how it is stored.

    Attributes:
        kind: "weight" or "bias".
        rows: its first dimension.
        config: the model.
        prefix: what the names of this block begin with in the Hugging Face files.
        expert: number of the expert that it belongs to.
    """

    kind: str
    rows: int
    config: Config
    prefix: str
    expert: int = 0

    def stored_name(self, module: str) -> str:
        """Full Hugging Face name of a tensor of the same kind in this block."""
        return f"{self.prefix}{module.format(self.expert)}.{self.kind}"


@dataclass(frozen=True)
class Stored:
    """One tensor here is one tensor there, or one of several of equal size below each other (Phi-3's gate_up_proj).

    Attributes:
        name: the Hugging Face module; ``{}`` stands for an expert's number.
        part: which of the tensors below each other.
        transposed: a weight is stored (in, out) where litgpt's is (out, in) (GPT-2's Conv1D).
    """

    name: str
    part: int = 0
    transposed: bool = False

    def pieces(self, lit: LitTensor) -> list[Piece]:
        """Stored pieces that the litgpt tensor is made of, from top to bottom."""
        start, transpose = self.part * lit.rows, self.transposed and lit.kind == "weight"
        return [Piece(lit.stored_name(self.name), start, start + lit.rows, transpose=transpose)]


@dataclass(frozen=True)
class Split:
    """litgpt's fused qkv is q, k and v of the Hugging Face model, one below the other."""

    q: str
    k: str
    v: str

    def pieces(self, lit: LitTensor) -> list[Piece]:
        parts = zip((self.q, self.k, self.v), qkv_rows(lit.config), strict=True)
        return [Piece(lit.stored_name(part), 0, rows) for part, rows in parts]


@dataclass(frozen=True)
class Interleaved:
    """The Hugging Face tensor holds q, k and v of group 0, then those of group 1, ... (GPT-NeoX, Falcon)."""

    name: str

    def pieces(self, lit: LitTensor) -> list[Piece]:
        size, groups, stored = lit.config.head_size, lit.config.n_query_groups, lit.stored_name(self.name)
        if groups == 1:  # the order is litgpt's: a plain copy
            return [Piece(stored, 0, lit.rows)]
        q = [(start, start + lit.rows // groups - 2 * size) for start in range(0, lit.rows, lit.rows // groups)]
        k = [(stop, stop + size) for _, stop in q]
        v = [(stop, stop + size) for _, stop in k]
        return [Piece(stored, *rows) for rows in q + k + v]


@dataclass(frozen=True)
class Stacked:
    """One tensor (experts, rows, columns) holds that of every expert: the layout transformers 5 has in memory.

    It is read where someone saved it like this; exports have the published layout.

    Attributes:
        name: the tensor, which has no ``.weight`` behind it.
        part: which of ``parts`` tensors, one below the other in an expert's matrix.
    """

    name: str
    part: int = 0
    parts: int = 1

    def pieces(self, lit: LitTensor) -> list[Piece]:
        start = (lit.expert * self.parts + self.part) * lit.rows
        return [Piece(f"{lit.prefix}{self.name}", start, start + lit.rows, stack=lit.config.n_expert)]


Source = Stored | Split | Interleaved | Stacked


def qkv_rows(config: Config) -> tuple[int, int, int]:
    """Rows of q, k and v in litgpt's fused tensor."""
    return config.n_head * config.head_size, *(config.n_query_groups * config.head_size,) * 2
