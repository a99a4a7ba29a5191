"""Whether a round's models replace the best ones.

A round can be worse than the one before (ReST-MCTS* reports it for Mistral in round 2), so a gate is part of the method. It decides on
held-out problems only; test problems never take part.
"""

from dataclasses import dataclass
from typing import NamedTuple

CHANCE = 0.5
"""AUC of scores that know nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateDecision:
    """Whether a candidate is accepted, and why."""

    accepted: bool
    """True if the candidate replaces the best model."""
    reason: str
    """One clause for the table and the report."""


class KeptPRM(NamedTuple):
    """The PRM that guides the next search when a round brought none."""

    version: int | None
    """Its round; None searches without one."""
    clause: str
    """Addition to the gate's reason."""


def gate_policy(candidate: float | None, best: float | None, *, max_drop: float) -> GateDecision:
    """Accept a policy whose held-out pass@1 is not more than ``max_drop`` below the best one's.

    Args:
        candidate: Held-out pass@1 of the new policy in [0, 1]; None if none was trained.
        best: The same of the best policy so far, on the same problems; None before the first.
        max_drop: Tolerated fall, in [0, 1].
    """
    return _gate(candidate, best, max_drop=max_drop, what="held-out pass@1", floor=None)


def gate_prm(candidate: float | None, best: float | None, *, max_drop: float) -> GateDecision:
    """Accept a PRM that ranks the solutions of one problem better than chance and not worse than the best PRM does.

    Args:
        candidate: Within-problem AUC of the new PRM in [0, 1] on fresh held-out samples; None if it could not be measured.
        best: The same of the best PRM so far on the same samples; None before the first.
        max_drop: Tolerated fall, in [0, 1].
    """
    return _gate(candidate, best, max_drop=max_drop, what="held-out within-problem AUC", floor=CHANCE)


def _gate(candidate: float | None, best: float | None, *, max_drop: float, what: str, floor: float | None) -> GateDecision:
    if candidate is None:
        return GateDecision(accepted=False, reason=f"{what} could not be measured")
    if floor is not None and candidate <= floor:
        return GateDecision(accepted=False, reason=f"{what} {candidate:.3f} is not above chance")
    if best is not None and candidate < best - max_drop:
        return GateDecision(accepted=False, reason=f"{what} {candidate:.3f} is below the best model's {best:.3f}")
    return GateDecision(accepted=True, reason=f"{what} {candidate:.3f}" + ("" if best is None else f", best before {best:.3f}"))


def fall_back(earlier: dict[int, float | None]) -> int | None:
    """Return the round of the PRM that replaces a failing best one: the best earlier PRM above chance, the newest of equals.

    Args:
        earlier: Within-problem AUC, on fresh held-out samples, of the PRMs that were accepted before it, by round.

    Returns:
        None if none is above chance: no PRM is better than one that ranks wrong solutions first.
    """
    known = [(auc, number) for number, auc in earlier.items() if auc is not None and auc > CHANCE]
    return max(known)[1] if known else None


def fails(auc: float | None) -> bool:
    """Say whether a PRM ranks no better than chance; one that could not be measured does not fail."""
    return auc is not None and auc <= CHANCE
