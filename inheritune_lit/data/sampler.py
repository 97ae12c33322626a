"""The order of samples, and how often each domain is drawn.

The order comes from keyed permutations of 0..n-1 that are computed a position at a time and never held in memory: a
generalised Feistel network (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): x is written as
(left, right) in [0, a) x [0, b) with a * b just above n, each round shifts one half by a hash of the other, and results
outside [0, n) are permuted again ("cycle walking"). Nothing depends on NumPy's random generators, whose streams may
change between versions.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from inheritune_lit.errors import UserError

# Fewer rounds are noticeably uneven for the smallest n: with 8, chi-square over the 120 permutations of five elements
# is 25 times what is expected (120,000 keys); with 16 it is as expected for every n tried from 3 to 6.
ROUNDS = 16
_FACTORS = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)  # SplitMix64's output function
_SHIFTS, _HALF = np.array([30, 27, 31], dtype=np.uint64), np.uint64(32)


def round_keys(seed: int, stream: str, number: int) -> np.ndarray:
    """Returns the keys of permutation ``number`` of a stream, such as an epoch of a domain; uint64, shape (ROUNDS,)."""
    digest = hashlib.shake_256(f"{seed}/{number}/{stream}".encode("utf-8", "surrogatepass")).digest(8 * ROUNDS)
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def permute(positions: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Returns where positions in [0, n), n up to 2**62, go under a permutation of 0..n-1; int64, shape (B,).

    Keys come from ``round_keys``, in the shape (ROUNDS,), or (ROUNDS, B) for a permutation of its own each.
    """
    rows = math.isqrt(n - 1) + 1 if n > 1 else 1
    columns = -(-n // rows)
    images = _network(positions.astype(np.uint64), rows, columns, keys)
    while len(outside := np.flatnonzero(images >= np.uint64(n))):
        images[outside] = _network(images[outside], rows, columns, keys if keys.ndim == 1 else keys[:, outside])
    return images.astype(np.int64)


def _network(values: np.ndarray, rows: int, columns: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of 0..rows*columns-1: in turn each half is shifted by a hash of the other, modulo its size."""
    sizes = np.uint64(rows), np.uint64(columns)
    halves = list(np.divmod(values, sizes[1]))
    for number, key in enumerate(keys):
        moved = number % 2
        hashed = halves[1 - moved] + key
        for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
            hashed ^= hashed >> shift
            hashed *= factor
        hashed ^= hashed >> _SHIFTS[2]
        hashed >>= _HALF
        hashed *= sizes[moved]
        hashed >>= _HALF  # now in [0, size): a multiplication is several times faster than a division
        hashed += halves[moved]
        hashed -= sizes[moved] * (hashed >= sizes[moved])
        halves[moved] = hashed
    return halves[0] * sizes[1] + halves[1]


CYCLE = 10_000  # positions in which every domain gets its share, exact in hundredths of a percent; made in milliseconds
_CHUNK = 1 << 20


def micro_batch_samples(
    step: int, micro: int, global_batch_size: int, micro_batch_size: int, rank: int = 0, ranks: int = 1
) -> range:
    """Returns the positions, in the order of samples, of what a rank takes in a micro-batch of an optimizer step.

    All count from 0; a step has global_batch_size / (micro_batch_size * ranks) micro-batches.
    """
    first = step * global_batch_size + (micro * ranks + rank) * micro_batch_size
    return range(first, first + micro_batch_size)


class _Group(NamedTuple):
    """Samples that are permuted together: one domain's, or all of them without weights, where the name is empty."""

    name: str
    first: int
    size: int  # samples, which follow each other from the first on
    draws: int  # per cycle
    drawn: int = 0  # when the mixture began
    rest: np.ndarray = np.zeros(0, dtype=np.int64)  # left of an epoch that other data cut, counted from ``first``
    start: int = 0  # the draw behind those of the rest
    stream: str = ""  # of the order of the rest


class MixtureSampler:
    """The order in which samples are drawn: what is at position i depends on the arguments and i alone.

    So any number of workers and ranks agree, and a restarted run needs one integer to continue. Without weights every
    epoch draws each sample exactly once, in an order of its own. With weights the order consists of cycles of 10,000
    positions: in each, every domain is drawn as often as ``draws`` says, in an order drawn anew for each cycle. Draw k
    of a domain with n samples is position k mod n in the domain's own permutation for its epoch k div n. So a domain
    gives all of its samples before any a second time, at its own pace, and none runs out.

    Args:
        domain_sizes: number of samples per domain; samples are numbered through in this order.
        seed: of the order.
        draws: positions per cycle for each domain that is drawn, ``CYCLE`` in all; None for epochs of all samples.
        first_sample, before: a mixture that replaces another one at this position. Domains continue where they are:
            what is left of their epoch comes first, with the samples that were added, in an order of its own where
            there are other samples than before. How often each domain had been drawn says as much, where all of them
            are still the same.
    """

    def __init__(
        self,
        domain_sizes: Mapping[str, int],
        seed: int,
        draws: Mapping[str, int] | None = None,
        first_sample: int = 0,
        before: "MixtureSampler | Mapping[str, int] | None" = None,
    ) -> None:
        self.domain_sizes, self.seed, self.first_sample = dict(domain_sizes), seed, first_sample
        ends = np.cumsum(list(domain_sizes.values())).tolist()
        self._size = ends[-1]
        self._firsts = {name: end - size for (name, size), end in zip(domain_sizes.items(), ends, strict=True)}
        counts: Mapping[str, int] = {}
        if isinstance(before, Mapping):
            counts, sizes = before, {name: domain_sizes[name] for name in before}
            before = MixtureSampler(sizes, seed) if draws is None else None
        self._undrawn = before.left(first_sample, self) if before else np.ones(self._size, dtype=bool)
        groups = [_Group("", 0, self._size, CYCLE)]
        if draws is not None:
            groups = [
                _Group(name, first, domain_sizes[name], draws[name], counts.get(name, 0))
                for name, first in self._firsts.items()
                if draws.get(name)
            ]
        self._groups = [self._continued(group, before) for group in groups] if before else groups
        self._turn_ends = np.cumsum([group.draws for group in self._groups])
        self._cycle = lru_cache(maxsize=2)(self._draw_cycle)  # a batch lies in two at most

    def __getitem__(self, position: int) -> int:
        """Returns the sample at a position, for any from ``first_sample`` on."""
        return int(self.blocks(range(position, position + 1))[0])

    def blocks(self, positions: range) -> np.ndarray:
        """Returns the samples at consecutive positions, int64, shape (len(positions),)."""
        start, stop = positions.start - self.first_sample, positions.stop - self.first_sample
        cycles = range(start // CYCLE, -(-stop // CYCLE))
        parts = [self._cycle(number)[max(0, start - number * CYCLE) : stop - number * CYCLE] for number in cycles]
        return np.concatenate(parts)

    def counts(self, start: int, stop: int) -> np.ndarray:
        """Returns how often positions start, ..., stop - 1 draw each sample, int64, shape (samples,).

        Without visiting them: k draws of n samples give each k div n times, the first k mod n of the order once more.
        """
        counts = np.zeros(self._size, dtype=np.int64)
        for sign, position in ((1, stop), (-1, start)):
            for group, draws in zip(self._groups, self._draws_before(position), strict=True):
                counts[group.first : group.first + group.size] += sign * self._times(group, draws)
        return counts

    def left(self, position: int, other: "MixtureSampler") -> np.ndarray:
        """Returns which samples of another sampler are still to come in their epoch here, at a position, as booleans.

        A domain's sample is known by its number in the domain. What is not here at all is still to come.
        """
        here = self._undrawn.copy()
        for group, draws in zip(self._groups, self._draws_before(position), strict=True):
            here[group.first : group.first + group.size] = self._times(group, draws) == draws // group.size
        there = np.ones(other._size, dtype=bool)
        for name in self._firsts.keys() & other._firsts.keys():
            common, first = min(self.domain_sizes[name], other.domain_sizes[name]), other._firsts[name]
            there[first : first + common] = here[self._firsts[name] : self._firsts[name] + common]
        return there

    def _continued(self, new: _Group, before: "MixtureSampler") -> _Group:
        """Returns a group as it goes on after another sampler's."""
        epoch = 1
        for group, drawn in zip(before._groups, before._draws_before(self.first_sample), strict=True):
            same = group.size == new.size if new.name else before.domain_sizes == self.domain_sizes
            if group.name == new.name and same:
                return group._replace(first=new.first, draws=new.draws, drawn=drawn)
            epoch = max(epoch, drawn // group.size + 1)
        rest, start = np.flatnonzero(self._undrawn[new.first : new.first + new.size]), epoch * new.size
        stream = f"rest {self.first_sample} {new.name}"
        return new._replace(drawn=start - len(rest), rest=rest, start=start, stream=stream)

    def _times(self, group: _Group, draws: int) -> np.ndarray:
        """Returns how often each sample of a group was drawn after so many draws of it, int64, shape (size,)."""
        epoch, again = divmod(max(draws, group.start), group.size)
        times = np.full(group.size, epoch, dtype=np.int64)
        for first in range(0, again, _CHUNK):
            times[self._drawn(group, epoch * group.size + first, min(_CHUNK, again - first)) - group.first] += 1
        if draws < group.start:
            times[self._drawn(group, draws, group.start - draws) - group.first] -= 1
        return times

    def domain_counts(self, start: int, stop: int) -> dict[str, int]:
        """Returns how often positions start, ..., stop - 1 draw each domain."""
        counts, sizes = self.counts(start, stop), self.domain_sizes
        return {name: int(counts[first : first + sizes[name]].sum()) for name, first in self._firsts.items()}

    def _draws_before(self, position: int) -> list[int]:
        """Returns how often each group was drawn in all before a position."""
        cycle, rest = divmod(position - self.first_sample, CYCLE)
        partial = np.bincount(self._turns(cycle)[:rest], minlength=len(self._groups)).tolist()
        return [group.drawn + cycle * group.draws + extra for group, extra in zip(self._groups, partial, strict=True)]

    def _turns(self, cycle: int) -> np.ndarray:
        """Returns which group has its turn at each position of a cycle."""
        keys = round_keys(self.seed, f"turns {self.first_sample}", cycle)
        return np.searchsorted(self._turn_ends, permute(np.arange(CYCLE), CYCLE, keys), side="right")

    def _draw_cycle(self, number: int) -> np.ndarray:
        turns, samples = self._turns(number), np.empty(CYCLE, dtype=np.int64)
        for index, group in enumerate(self._groups):
            samples[turns == index] = self._drawn(group, group.drawn + number * group.draws, group.draws)
        return samples

    def _drawn(self, group: _Group, first: int, count: int) -> np.ndarray:
        """Returns the samples of some consecutive draws of a group."""
        if (of_rest := group.start - first) > 0:
            if of_rest < count:
                parts = (first, of_rest), (group.start, count - of_rest)
                return np.concatenate([self._drawn(group, *part) for part in parts])
            keys, size = round_keys(self.seed, group.stream, 0), len(group.rest)
            positions = np.arange(first, first + count) - (group.start - size)
            return group.first + group.rest[permute(positions, size, keys)]
        epochs, positions = np.divmod(np.arange(first, first + count), group.size)
        own = [round_keys(self.seed, f"blocks {group.name}", epoch) for epoch in range(epochs[0], epochs[-1] + 1)]
        keys = own[0] if len(own) == 1 else np.stack(own, axis=1)[:, epochs - epochs[0]]
        return group.first + permute(positions, group.size, keys)


Weights = Mapping[str, float] | Literal["proportional", "uniform"]


@dataclass(frozen=True)
class DomainSize:
    """Samples that a domain is cut into, and targets in them, padding left out."""

    samples: int
    tokens: int


@dataclass(frozen=True)
class Mixture:
    """Domains and how often they are drawn."""

    domains: dict[str, DomainSize]
    draws: dict[str, int] | None  # each domain's of ``CYCLE`` samples; None where all are visited in epochs

    @property
    def samples(self) -> int:
        """Samples in all domains."""
        return sum(size.samples for size in self.domains.values())

    @property
    def tokens(self) -> int:
        """Targets in all domains."""
        return sum(size.tokens for size in self.domains.values())

    def share(self, domain: str) -> Fraction:
        """Part of the samples that a domain gives."""
        if self.draws is None:
            return Fraction(self.domains[domain].samples, self.samples)
        return Fraction(self.draws.get(domain, 0), CYCLE)

    @property
    def tokens_per_sample(self) -> Fraction:
        """Targets in a sample, on average over a cycle or an epoch."""
        drawn = [(self.share(name), size) for name, size in self.domains.items() if size.samples]
        return sum((share * Fraction(size.tokens, size.samples) for share, size in drawn), Fraction(0))

    def epochs(self, domain: str, samples: int) -> float:
        """Passes over a domain that a number of samples makes."""
        own = self.domains[domain].samples
        return float(samples * self.share(domain) / own) if own else 0.0


def divide_domains(names: Iterable[str], domains: Iterable[str]) -> dict[str, list[str]]:
    """Returns the domains of each name of a mixture: a domain goes to its own name, else to the longest that begins it.

    "cc" stands for "cc_2019-30" and "cc_2023-06", where these are not named themselves.
    """
    divided: dict[str, list[str]] = {name: [] for name in names}
    for domain in domains:
        fitting = [name for name in divided if domain == name or domain.startswith(f"{name}_")]
        if fitting:
            divided[max(fitting, key=len)].append(domain)
    return divided


def make_mixture(domains: dict[str, DomainSize], weights: Weights) -> Mixture:
    """Turns relative weights by name into samples per cycle; a name that is left out has 0.

    The domains of a name (see ``divide_domains``) share its weight by their samples. "uniform" weighs all domains that
    have a sample equally; "proportional" goes through all the data in epochs. A weight that makes no sense, or a domain
    that is not there or is drawn without having a sample, is a ``UserError``.
    """
    if weights == "proportional":
        return Mixture(domains, None)
    if weights == "uniform":
        weights = {name: 1.0 for name, size in domains.items() if size.samples}
    by_domain: dict[str, Fraction] = {}
    for name, covered in divide_domains(weights, domains).items():
        weight = weights[name]
        if not covered:
            raise UserError(f"--mixture.weights names {name!r}; the data has the domains {', '.join(domains)}")
        if not 0 <= weight < math.inf:
            raise UserError(f"--mixture.weights.{name} is {weight}; give 0 or more")
        samples = sum(domains[domain].samples for domain in covered)
        if not weight:
            continue
        if not samples:
            none = f"{name} has no training sample of this length"
            raise UserError(f"--mixture.weights.{name} is {weight}, but {none}; give 0")
        by_domain |= {domain: Fraction(weight) * domains[domain].samples / samples for domain in covered}
    if not by_domain:
        raise UserError("--mixture.weights are all 0; give at least one above 0")
    draws = apportion(by_domain, CYCLE)
    for domain, part in by_domain.items():
        if part and not draws[domain]:
            few = f"{float(part / sum(by_domain.values())):.2g} of the samples, less than one in {CYCLE:,}"
            raise UserError(f"--mixture.weights give {domain} {few}; give it more, or 0 to leave it out")
    return Mixture(domains, {domain: count for domain, count in draws.items() if count})


def apportion(weights: Mapping[str, float | Fraction], total: int) -> dict[str, int]:
    """Returns whole numbers that sum to ``total``, nearest to weights not all 0 (largest remainder; ties by name)."""
    # Exact, so that every platform rounds alike.
    whole = sum(Fraction(weight) for weight in weights.values())
    quotas = {name: total * Fraction(weight) / whole for name, weight in weights.items()}
    counts = {name: int(quota) for name, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda name: (counts[name] - quotas[name], name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
