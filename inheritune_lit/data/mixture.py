"""How often each domain is drawn."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from inheritune_lit.data.sampler import CYCLE
from inheritune_lit.errors import UserError

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
    draws: dict[str, int] | None
    """Of ``CYCLE`` samples, how many are each domain's; None where all are visited in epochs."""

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
    """Returns the domains that each name of a mixture stands for.

    A domain goes to its own name, else to the longest name that it begins with, followed by an underscore: "cc" stands
    for "cc_2019-30" and "cc_2023-06", where these are not named themselves.
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
    have a sample equally; "proportional" goes through all the data in epochs.

    Raises:
        UserError: a weight that makes no sense, or a domain that is not there or is drawn without having a sample.
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
        if weight and not samples:
            raise UserError(
                f"--mixture.weights.{name} is {weight}, but {name} has no training sample of this length; give 0"
            )
        if weight:
            by_domain |= {domain: Fraction(weight) * domains[domain].samples / samples for domain in covered}
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
    """Returns whole numbers that sum to ``total``, as near to the weights as can be (largest remainder; ties by name).

    Weights are 0 or more each, at least one above 0.
    """
    # Exact, so that every platform rounds alike.
    whole = sum((Fraction(weight) for weight in weights.values()), Fraction(0))
    quotas = {name: total * Fraction(weight) / whole for name, weight in weights.items()}
    counts = {name: int(quota) for name, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda name: (counts[name] - quotas[name], name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
