"""How a litgpt tensor of a block lies in Hugging Face files, and the way back."""

from dataclasses import dataclass, replace

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.tensors import Piece, merge, select_rows

Stored = dict[str, list[Piece]]


@dataclass(frozen=True)
class LitTensor:
    """A tensor of a litgpt block.

    Attributes:
        name: its whole name.
        module: its module in the block, such as "attn.qkv".
        kind: "weight" or "bias".
        rows: its first dimension.
        config: the model.
        prefix: what the names of this block begin with in the Hugging Face files.
    """

    name: str
    module: str
    kind: str
    rows: int
    config: Config
    prefix: str

    def stored_name(self, module: str) -> str:
        """Full Hugging Face name of a tensor of the same kind in this block."""
        return f"{self.prefix}{module}.{self.kind}"

    def whole(self) -> list[Piece]:
        """All of the litgpt tensor."""
        return [Piece(self.name, 0, self.rows)]


@dataclass(frozen=True)
class Plain:
    """One tensor here is one tensor there."""

    name: str

    def read(self, lit: LitTensor) -> list[Piece]:
        """Stored pieces that the litgpt tensor is made of."""
        return [Piece(lit.stored_name(self.name), 0, lit.rows)]

    def write(self, lit: LitTensor) -> Stored:
        """Stored tensors that begin with this litgpt tensor, as pieces of litgpt tensors."""
        return {lit.stored_name(self.name): lit.whole()}


@dataclass(frozen=True)
class Split:
    """litgpt's fused qkv is q, k and v of the Hugging Face model, one below the other."""

    q: str
    k: str
    v: str

    def read(self, lit: LitTensor) -> list[Piece]:
        parts = zip((self.q, self.k, self.v), qkv_rows(lit.config), strict=True)
        return [Piece(lit.stored_name(part), 0, rows) for part, rows in parts]

    def write(self, lit: LitTensor) -> Stored:
        q, k, _ = qkv_rows(lit.config)
        bounds = ((0, q), (q, q + k), (q + k, lit.rows))
        parts = zip((self.q, self.k, self.v), bounds, strict=True)
        return {lit.stored_name(part): select_rows(lit.whole(), [bound]) for part, bound in parts}


@dataclass(frozen=True)
class Interleaved:
    """The Hugging Face tensor holds q, k and v of group 0, then those of group 1, ... (GPT-NeoX, Falcon)."""

    name: str

    def read(self, lit: LitTensor) -> list[Piece]:
        stored = [Piece(lit.stored_name(self.name), 0, lit.rows)]
        return merge(select_rows(stored, interleaved_ranges(lit.config)))

    def write(self, lit: LitTensor) -> Stored:
        # Position of every stored row in litgpt's order, group by group.
        position, placed = 0, []
        for start, stop in interleaved_ranges(lit.config):
            placed.append((start, (position, position + stop - start)))
            position += stop - start
        return {lit.stored_name(self.name): select_rows(lit.whole(), [rows for _, rows in sorted(placed)])}


@dataclass(frozen=True)
class Transposed:
    """The Hugging Face tensor is (in, out) where litgpt's is (out, in); biases are the same (GPT-2's Conv1D)."""

    name: str

    def read(self, lit: LitTensor) -> list[Piece]:
        return [Piece(lit.stored_name(self.name), 0, lit.rows, transpose=lit.kind == "weight")]

    def write(self, lit: LitTensor) -> Stored:
        if lit.kind == "bias":
            return {lit.stored_name(self.name): lit.whole()}
        columns = _input_size(lit.config, lit.module)
        return {lit.stored_name(self.name): [Piece(lit.name, 0, columns, transpose=True)]}


@dataclass(frozen=True)
class Half:
    """Two tensors of litgpt are one of the Hugging Face model, one below the other (Phi-3's gate_up_proj).

    Attributes:
        name: the Hugging Face module.
        upper, lower: litgpt's modules.
    """

    name: str
    upper: str
    lower: str

    def read(self, lit: LitTensor) -> list[Piece]:
        start = lit.rows if lit.module == self.lower else 0
        return [Piece(lit.stored_name(self.name), start, start + lit.rows)]

    def write(self, lit: LitTensor) -> Stored:
        if lit.module == self.lower:
            return {}
        lower = lit.name.replace(f".{self.upper}.", f".{self.lower}.")
        return {lit.stored_name(self.name): [*lit.whole(), Piece(lower, 0, lit.rows)]}


@dataclass(frozen=True)
class Stacked:
    """One tensor (experts, rows, columns) holds that of every expert: the layout transformers 5 has in memory.

    It is read where someone saved it like this; exports have the published layout.

    Attributes:
        name: the tensor, which has no ``.weight`` behind it.
        part: which of ``parts`` tensors, one below the other in an expert's matrix.
        expert: filled in for a certain expert.
    """

    name: str
    part: int = 0
    parts: int = 1
    expert: int = 0

    def of_expert(self, expert: int) -> "Stacked":
        return replace(self, expert=expert)

    def read(self, lit: LitTensor) -> list[Piece]:
        start = (self.expert * self.parts + self.part) * lit.rows
        return [Piece(f"{lit.prefix}{self.name}", start, start + lit.rows, stack=lit.config.n_expert)]


Source = Plain | Split | Interleaved | Transposed | Half | Stacked


def qkv_rows(config: Config) -> tuple[int, int, int]:
    """Rows of q, k and v in litgpt's fused tensor."""
    return config.n_head * config.head_size, *(config.n_query_groups * config.head_size,) * 2


def interleaved_ranges(config: Config) -> list[tuple[int, int]]:
    """Rows of an interleaved qkv tensor in litgpt's order: all q, then all k, then all v."""
    size, per_group = config.head_size, config.n_head // config.n_query_groups
    group_rows = (per_group + 2) * size
    starts = [group * group_rows for group in range(config.n_query_groups)]
    q_rows = per_group * size
    return [
        *((start, start + q_rows) for start in starts),
        *((start + q_rows, start + q_rows + size) for start in starts),
        *((start + q_rows + size, start + q_rows + 2 * size) for start in starts),
    ]


def _input_size(config: Config, module: str) -> int:
    """Columns of a block's linear module."""
    if module == "attn.proj":
        return config.n_head * config.head_size
    return config.intermediate_size if module == "mlp.proj" else config.n_embd
