"""How often each domain is drawn."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from inheritune_lit.data.sampler import CYCLE
from inheritune_lit.errors import UserError

Weights = Mapping[str, float] | Literal["proportional", "uniform"]


@dataclass(frozen=True)
class DomainSize:
    """A domain's part of a data set.

    Attributes:
        blocks: samples it is cut into.
        tokens: targets in them, padding left out.
    """

    blocks: int
    tokens: int


@dataclass(frozen=True)
class Mixture:
    """Domains and how often they are drawn.

    Attributes:
        domains: sizes.
        draws: of ``CYCLE`` samples, how many are each domain's; None where all blocks are visited in epochs.
    """

    domains: dict[str, DomainSize]
    draws: dict[str, int] | None

    @property
    def blocks(self) -> int:
        """Samples in all domains."""
        return sum(size.blocks for size in self.domains.values())

    @property
    def tokens(self) -> int:
        """Targets in all domains."""
        return sum(size.tokens for size in self.domains.values())

    def share(self, domain: str) -> Fraction:
        """Part of the samples that a domain gives."""
        if self.draws is None:
            return Fraction(self.domains[domain].blocks, self.blocks)
        return Fraction(self.draws.get(domain, 0), CYCLE)

    @property
    def tokens_per_sample(self) -> Fraction:
        """Targets in a sample, on average over a cycle or an epoch."""
        drawn = [(self.share(name), size) for name, size in self.domains.items() if size.blocks]
        return sum((share * Fraction(size.tokens, size.blocks) for share, size in drawn), Fraction(0))

    def epochs(self, domain: str, samples: int) -> float:
        """Passes over a domain that a number of samples makes."""
        blocks = self.domains[domain].blocks
        return float(samples * self.share(domain) / blocks) if blocks else 0.0


def make_mixture(domains: dict[str, DomainSize], weights: Weights) -> Mixture:
    """Turn weights into samples per cycle.

    Args:
        domains: sizes.
        weights: relative weights by domain, those left out are 0. A name stands for the domain of that name and for
            those whose names begin with it and an underscore and are not named themselves ("cc" for "cc_2019-30" and
            "cc_2023-06"); they share its weight by their blocks. "uniform" weighs all domains that have a block
            equally; "proportional" goes through all the data in epochs.

    Raises:
        UserError: a weight that makes no sense, or a domain that is not there or is drawn without having a block.
    """
    if weights == "proportional":
        return Mixture(domains, None)
    if weights == "uniform":
        weights = {name: 1.0 for name, size in domains.items() if size.blocks}
    by_domain: dict[str, Fraction] = {}
    for name, weight in weights.items():
        covered = [d for d in domains if d == name or (d.startswith(f"{name}_") and d not in weights)]
        if not covered:
            raise UserError(f"--mixture.weights names {name!r}; the data has the domains {', '.join(domains)}")
        if not 0 <= weight < math.inf:
            raise UserError(f"--mixture.weights.{name} is {weight}; give 0 or more")
        blocks = sum(domains[domain].blocks for domain in covered)
        if weight and not blocks:
            raise UserError(
                f"--mixture.weights.{name} is {weight}, but {name} has no training sample of this length; give 0"
            )
        for domain in covered if weight else ():
            part = Fraction(weight) * domains[domain].blocks / blocks
            by_domain[domain] = by_domain.get(domain, Fraction(0)) + part
    if not by_domain:
        raise UserError("--mixture.weights are all 0; give at least one above 0")
    draws = apportion(by_domain, CYCLE)
    for domain, part in by_domain.items():
        if part and not draws[domain]:
            raise UserError(
                f"--mixture.weights give {domain} {float(part / sum(by_domain.values())):.2g} of the samples, less "
                f"than one in {CYCLE:,}; give it more, or 0 to leave it out"
            )
    return Mixture(domains, {domain: count for domain, count in draws.items() if count})


def apportion(weights: Mapping[str, float | Fraction], total: int) -> dict[str, int]:
    """Whole numbers of a given sum, as near to the weights as they can be (largest remainder; ties by name).

    Args:
        weights: 0 or more each, at least one above 0.
        total: the sum.
    """
    # Exact, so that every platform rounds alike.
    whole = sum((Fraction(weight) for weight in weights.values()), Fraction(0))
    quotas = {name: total * Fraction(weight) / whole for name, weight in weights.items()}
    counts = {name: int(quota) for name, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda name: (counts[name] - quotas[name], name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
