"""Which layers a model has from round to round."""

from dataclasses import dataclass

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.layers import parse_layers


@dataclass(frozen=True)
class GrowOptions:
    """How a model grows.

    Attributes:
        n: layers at the start; half of the reference's when None.
        grow_by: layers a round.
        new_layers: "next" takes the reference's at the next positions, "own" copies the model's own last ones; a layer
            selection (see ``parse_layers``) names those of the reference that are taken in turn.
        old_layers: "trained" goes on with what the model has learnt; "inherited" begins every round with the
            reference's layers as they are.
        max_layers: depth at which growing ends; the reference's when None.
        max_flops: of training in all rounds; unlimited when None.
    """

    n: int | None = None
    grow_by: int = 2
    new_layers: str = "next"
    old_layers: str = "trained"
    max_layers: int | None = None
    max_flops: float | None = None


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        number: from 1.
        layers: the reference's layer behind each layer of the model.
        added: how many of them, the last ones, are new.
    """

    number: int
    layers: tuple[int, ...]
    added: int

    @property
    def name(self) -> str:
        """Name of its run folder."""
        return f"round-{self.number:02}-{len(self.layers)}l"


def plan_layers(options: GrowOptions, depth: int, start: tuple[int, ...] | None = None) -> list[Round]:
    """All rounds that there can be, Algorithm 1 of the paper.

    Args:
        options: how to grow.
        depth: the reference's number of layers.
        start: the reference's layer behind each layer of a checkpoint to start from; its first ``options.n`` when None.

    Raises:
        UserError: options that the reference's depth or each other rule out.
    """
    if options.grow_by < 1:
        raise UserError(f"--grow_by is {options.grow_by}; give the number of layers that a round adds, 1 or more")
    if options.old_layers == "inherited" and (start is not None or options.new_layers == "own"):
        other = "--initial_checkpoint_dir" if start is not None else "--new_layers own"
        raise UserError(
            f"--old_layers inherited takes every layer from the reference, {other} does not; give one of them"
        )
    if start is None:
        n = max(1, depth // 2) if options.n is None else options.n
        if not 1 <= n <= depth:
            raise UserError(f"--n is {n}; the reference has {depth} layers, give 1 to {depth}")
        start = tuple(range(n))
    elif options.n is not None:
        raise UserError(f"--n {options.n} and --initial_checkpoint_dir both say where to start; give one")
    limit = depth if options.max_layers is None else options.max_layers
    if not len(start) <= limit <= depth:
        raise UserError(
            f"--max_layers is {limit}; the start has {len(start)} layers and the reference {depth}, beyond which there "
            f"is nothing to grow: give {len(start)} to {depth}"
        )
    rounds, layers = [Round(1, start, 0)], start
    source = _Source(options, depth)
    while len(layers) + options.grow_by <= limit and (new := source.take(layers)):
        layers += new
        rounds.append(Round(len(rounds) + 1, layers, options.grow_by))
    if len(rounds) == 1 and options.max_layers != len(start):
        raise UserError(
            f"--grow_by {options.grow_by} on {len(start)} layers grows past {source.end(limit)}; give a smaller "
            f"--grow_by, a smaller start, or --max_layers {len(start)} to train without growing"
        )
    return rounds


class _Source:
    """Where new layers come from."""

    def __init__(self, options: GrowOptions, depth: int) -> None:
        self.options, self.depth = options, depth
        self.listed: tuple[int, ...] | None = None
        if options.new_layers not in ("next", "own"):
            try:
                self.listed = tuple(parse_layers(options.new_layers, depth))
            except UserError as error:
                # The syntax is that of `inheritune slice`, whose option has another name.
                told = str(error).replace("--layers", "--new_layers", 1)
                raise UserError(f"{told}; or next, or own") from error
        self.left = self.listed or ()

    def take(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """The layers that a model with ``layers`` grows by; none where they are used up."""
        count = self.options.grow_by
        if self.options.new_layers == "next":
            return tuple(range(len(layers), len(layers) + count))
        if self.options.new_layers == "own":
            return layers[-count:] if count <= len(layers) else ()
        new, self.left = self.left[:count], self.left[count:]
        return new if len(new) == count else ()

    def end(self, limit: int) -> str:
        """What the first growth would pass."""
        if self.listed is not None and len(self.listed) < self.options.grow_by:
            return f"--new_layers {self.options.new_layers}, which are {len(self.listed)}"
        if self.options.new_layers == "own" and limit == self.depth:
            return f"its own layers or the reference's {self.depth}"
        return f"--max_layers {limit}" if limit < self.depth else f"the reference's {self.depth} layers"
