"""Whether a round's models replace the best ones.

A round can be worse than the one before (ReST-MCTS* reports it for Mistral in round 2), so a gate is part of the method. It decides on
held-out problems only; test problems never take part. The paired test is exact: the sign test on problems that the two models do not solve,
or rank, alike.
"""

from dataclasses import dataclass
from typing import NamedTuple

from stepladder.data.metrics.answers import sign_test_p_value
from stepladder.loops.config.search import GateConfig

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


@dataclass(frozen=True, kw_only=True, slots=True)
class GateEvidence:
    """What a candidate and the best model did on the same held-out problems."""

    problems: int
    """Problems on which the candidate was measured."""
    better: int = 0
    """Problems on which the candidate did better than the best model."""
    worse: int = 0
    """Problems on which it did worse."""
    rows: int | None = None
    """Rows that the candidate learned from; None if unknown."""

    @property
    def p_better(self) -> float:
        """How likely so many problems in favour are by chance, in [0, 1]."""
        return sign_test_p_value(self.better, self.worse)

    @property
    def p_worse(self) -> float:
        """How likely so many problems against it are by chance, in [0, 1]."""
        return sign_test_p_value(self.worse, self.better)


@dataclass(frozen=True, slots=True)
class _Measure:
    """What a gate compares, as its reasons write it."""

    name: str
    in_percent: bool = False

    def written(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.in_percent else f"{value:.3f}"


def gate_policy(candidate: float | None, best: float | None, settings: GateConfig, evidence: GateEvidence) -> GateDecision:
    """Decide on a policy.

    Args:
        candidate: Held-out pass@1 of the new policy in [0, 1]; None if none was trained.
        best: The same of the best policy so far, on the same problems; None before the first.
        settings: The rule.
        evidence: What both did, problem by problem.
    """
    return _gate(candidate, best, settings, evidence, what=_Measure("held-out pass@1", in_percent=True), floor=None)


def gate_prm(candidate: float | None, best: float | None, settings: GateConfig, evidence: GateEvidence) -> GateDecision:
    """Decide on a PRM, which must also rank the solutions of one problem better than chance.

    Args:
        candidate: Within-problem AUC of the new PRM in [0, 1] on fresh held-out samples; None if it could not be measured.
        best: The same of the best PRM so far on the same samples; None before the first.
        settings: The rule.
        evidence: What both did, problem by problem.
    """
    return _gate(candidate, best, settings, evidence, what=_Measure("held-out within-problem AUC"), floor=CHANCE)


def _gate(
    candidate: float | None, best: float | None, settings: GateConfig, evidence: GateEvidence, *, what: _Measure, floor: float | None
) -> GateDecision:
    if candidate is None:
        return GateDecision(accepted=False, reason=f"{what.name} could not be measured")
    found = f"{what.name} {what.written(candidate)}"
    if evidence.problems < settings.min_problems:
        few = f"{evidence.problems} problems, fewer than gate.min_problems = {settings.min_problems}"
        return GateDecision(accepted=False, reason=f"{found} was measured on {few}")
    if evidence.rows is not None and evidence.rows < settings.min_rows:
        return GateDecision(accepted=False, reason=f"it learned from {evidence.rows} rows, fewer than gate.min_rows = {settings.min_rows}")
    if floor is not None and candidate <= floor:
        return GateDecision(accepted=False, reason=f"{found} is not above chance")
    if best is None:
        return GateDecision(accepted=True, reason=found)
    return _against_best(candidate, best, settings, evidence, what)


def _against_best(candidate: float, best: float, settings: GateConfig, evidence: GateEvidence, what: _Measure) -> GateDecision:
    found, before = f"{what.name} {what.written(candidate)}", what.written(best)
    allowed, counts = 1 - settings.confidence, f"{evidence.better} problems better, {evidence.worse} worse"
    if settings.rule == "drop":
        if candidate < best - settings.max_drop:
            return GateDecision(accepted=False, reason=f"{found} is below the best model's {before}")
        return GateDecision(accepted=True, reason=f"{found}, best before {before}")
    tested = f"{found}, best before {before}: {counts}"
    if settings.rule == "not-worse":
        accepted = evidence.p_worse >= allowed
        verdict = f"p = {evidence.p_worse:.3f} of being worse" if accepted else f"worse with p = {evidence.p_worse:.3f} < {allowed:.3g}"
    else:
        accepted = evidence.p_better < allowed
        verdict = f"better with p = {evidence.p_better:.3f} < {allowed:.3g}" if accepted else f"p = {evidence.p_better:.3f} of being better"
    return GateDecision(accepted=accepted, reason=f"{tested}, {verdict}")


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
