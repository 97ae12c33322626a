"""When growing stops: the loss is not worse than the reference's."""

import math
from dataclasses import dataclass
from typing import Literal

from inheritune_lit.errors import UserError
from inheritune_lit.validation import BlockLosses, mean_loss

Z = 1.645
"""Standard errors of a one-sided bound with 95% confidence."""


@dataclass(frozen=True)
class Comparison:
    """A model against the reference on the same samples, in nats a token.

    Attributes:
        loss, reference: mean losses.
        difference: mean of the samples' differences, model minus reference.
        stderr: its standard error. Paired: what makes a sample hard for both cancels, so it is far below that of
            either loss.
        margin: how much worse the model may be.
        verdict: "met" if the difference is at most ``margin`` with 95% confidence (a test of non-inferiority), "worse"
            if it is above with the same confidence, "undecided" if the samples are too few to tell.
    """

    loss: float
    reference: float
    difference: float
    stderr: float
    margin: float
    verdict: Literal["met", "worse", "undecided"]

    @property
    def met(self) -> bool:
        """Whether the model has grown enough."""
        return self.verdict == "met"

    def words(self) -> str:
        """The decision with the numbers that it rests on."""
        low, high = self.difference - Z * self.stderr, self.difference + Z * self.stderr
        decision = {
            "met": f"not worse than the reference: {high:+.4f} <= {self.margin:g}",
            "worse": f"worse than the reference: {low:+.4f} > {self.margin:g}",
            "undecided": f"undecided: {low:+.4f} to {high:+.4f} holds {self.margin:g}, more samples would tell",
        }[self.verdict]
        return (
            f"held-out loss {self.loss:.4f}, reference {self.reference:.4f}: difference {self.difference:+.4f} ± "
            f"{self.stderr:.4f} (paired), margin {self.margin:g}; {decision}"
        )


def check_margin(margin: float) -> None:
    """Refuse a margin that no model or every model meets.

    Raises:
        UserError: it is negative or not finite.
    """
    if not 0 <= margin < math.inf:
        raise UserError(f"--margin is {margin}; give the nats by which the loss may be worse, 0 or more")


def compare(model: BlockLosses, reference: BlockLosses, margin: float) -> Comparison:
    """Decide from the losses of the same samples.

    Args:
        model, reference: losses of at least two samples.
        margin: nats a token.
    """
    differences = [ours - theirs for ours, theirs in zip(model.losses, reference.losses, strict=True)]
    difference, stderr, _, _ = mean_loss(differences, model.targets)
    verdict: Literal["met", "worse", "undecided"] = "undecided"
    if difference + Z * stderr <= margin:
        verdict = "met"
    elif difference - Z * stderr > margin:
        verdict = "worse"
    loss, _, _, _ = mean_loss(model.losses, model.targets)
    reference_loss, _, _, _ = mean_loss(reference.losses, reference.targets)
    return Comparison(loss, reference_loss, difference, stderr, margin, verdict)
