"""Measure a round's models, decide on held-out problems which ones are best now, and put the round's figures together."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stepladder.loops.runs.evaluation_rows import solved_problems
from stepladder.loops.runs.flops import FORWARD, TRAINING, FlopFigures, count_parameters
from stepladder.loops.runs.results import FailedTraining, LabelCounts, OverlapFigures, RoundRow, RoundTraining, SearchFigures
from stepladder.loops.runs.round_settings import NO_SETTINGS, RoundSettings
from stepladder.loops.runs.split_figures import SplitFigures
from stepladder.loops.stages.context import BestModels, RoundContext
from stepladder.loops.stages.evaluate import Evaluation, evaluate, run_evaluations
from stepladder.loops.stages.failures import failure_figures
from stepladder.loops.stages.figures import folder_auc, levels_of, problem_aucs, split_figures
from stepladder.loops.stages.gate import GateDecision, GateEvidence, KeptPRM, fails, fall_back, gate_policy, gate_prm
from stepladder.loops.stages.warnings import warnings_of


def judge(
    context: RoundContext,
    number: int,
    best: BestModels,
    *,
    training: RoundTraining,
    search: SearchFigures | None = None,
    labels: LabelCounts | None = None,
    nothing_learned: str | None = None,
    own: RoundSettings = NO_SETTINGS,
    overlap: OverlapFigures | None = None,
) -> RoundRow:
    """Evaluate the round's models, pass them through the gates, and return the round's figures.

    Args:
        context: The run.
        number: The round.
        best: The best models before it.
        training: Its trainings.
        search: Its training search; None in round 0.
        labels: Its training rows; None in round 0.
        nothing_learned: Reason for a policy without training rows; None if it had rows.
        own: Settings of the round.
        overlap: The models with which it sampled first; None without ``run.overlap``.
    """
    run = context.run
    policy = context.newest_policy(number, best.policy)
    own_prm = context.config.prm.version(policy)
    prm = number if run.prm(number).exists() else best.prm if own_prm is None else own_prm
    evaluate(context, number, policy=policy, prm=prm, best_prm=best.prm)
    abstention = context.config.labels.abstention
    answer = None if abstention is None else abstention.answer
    held_out, test = (
        split_figures(context.run.evaluation(number, split), levels_of(context.problems[split]), abstention=answer)
        for split in ("held_out", "test")
    )
    policy_gate = _policy_decision(context, number, policy, best.policy, held_out, training)
    prm_gate = _prm_decision(context, number, prm, best.prm, held_out, training)
    best_policy = policy if policy_gate.accepted else best.policy
    if own_prm is not None:
        kept = KeptPRM(context.config.prm.version(best_policy), "")
    else:
        kept = KeptPRM(prm, "") if prm_gate.accepted else kept_prm(context, number, policy, best.prm, held_out)
    searched = 0 if search is None else search.generated_tokens + search.rollout_tokens
    row = RoundRow(
        round=number,
        accepted=policy_gate.accepted,
        accepted_reason=policy_gate.reason,
        prm_accepted=prm_gate.accepted,
        prm_accepted_reason=prm_gate.reason + kept.clause,
        best_policy=best_policy,
        best_prm=kept.version,
        policy_version=policy,
        scorer_version=prm,
        held_out=held_out,
        test=test,
        generated_tokens=searched + own.probe_tokens + held_out.tokens.together + test.tokens.together,
        search=search,
        labels=labels,
        training=training,
        nothing_learned=nothing_learned,
        failures=failure_figures(run.round(number)),
        settings=own.settings,
        flops=_flops(context, policy, training, search),
        overlap=overlap,
    )
    return replace(row, warnings=warnings_of(run.rows()[:number], row))


def _flops(context: RoundContext, policy: int, training: RoundTraining, search: SearchFigures | None) -> FlopFigures | None:
    """Return the operations of the policy; None for a model that is not on this machine."""
    parameters = count_parameters(Path(context.run.policy_source(policy, context.run_config)))
    if parameters is None:
        return None
    use = None if search is None else search.token_use
    return FlopFigures(
        parameters=parameters,
        search_unique=None if use is None else float(FORWARD * parameters * use.unique_tokens),
        search_forwarded=None if use is None or use.forwarded_tokens is None else float(FORWARD * parameters * use.forwarded_tokens),
        training=float(TRAINING * parameters * sum(summary.tokens for summary in training.policy.stages.values())),
    )


def _policy_decision(
    context: RoundContext, number: int, candidate: int, best: int, held_out: SplitFigures, training: RoundTraining
) -> GateDecision:
    if number == 0:
        return GateDecision(accepted=True, reason="the starting policy")
    if candidate == best:
        return GateDecision(accepted=False, reason="no training data, the policy is unchanged")
    before = context.run.row(best)
    assert before is not None, "the best policy's round is finished"
    pass_at_1, best_pass_at_1 = (None if figures.pass_at_1 is None else figures.pass_at_1.value for figures in (held_out, before.held_out))
    new, old = (solved_problems(context.run.evaluation(version, "held_out") / "greedy") for version in (number, best))
    evidence = _evidence(new, old, rows=sum(summary.rows for summary in training.policy.stages.values()))
    return gate_policy(pass_at_1, best_pass_at_1, context.config.gate, evidence)


def _evidence(new: Mapping[str, float], old: Mapping[str, float], *, rows: int) -> GateEvidence:
    """Return the evidence from figures by problem, on which both models count only where both were measured."""
    shared = [(new[problem], old[problem]) for problem in new if problem in old]
    return GateEvidence(
        problems=len(new),
        better=sum(ours > theirs for ours, theirs in shared),
        worse=sum(ours < theirs for ours, theirs in shared),
        rows=rows,
    )


def _prm_decision(
    context: RoundContext, number: int, candidate: int | None, best: int | None, held_out: SplitFigures, training: RoundTraining
) -> GateDecision:
    if isinstance(training.prm, FailedTraining):
        return GateDecision(accepted=False, reason=f"training failed: {training.prm.failed}")
    if context.config.prm.is_policy:
        return GateDecision(accepted=False, reason="the policy scores its own steps")
    if context.config.prm.start == "fixed":
        return GateDecision(accepted=False, reason="the PRM is given")
    if candidate is None or candidate == best:
        return GateDecision(accepted=False, reason="no PRM was trained")
    auc, best_auc = held_out.pool.prm_within_problem_auc, held_out.best_prm_within_problem_auc
    folder = context.run.evaluation(number, "held_out")
    rows = 0 if training.prm is None else training.prm.rows
    evidence = _evidence(problem_aucs(folder / "samples"), problem_aucs(folder / "samples-best-prm"), rows=rows)
    return gate_prm(auc, best_auc, context.config.gate, evidence)


def kept_prm(context: RoundContext, number: int, policy: int, best: int | None, held_out: SplitFigures) -> KeptPRM:
    """Return the PRM that guides the next search if the round trained none.

    It is the best one so far. If that ranks no better than chance on the new policy's samples, it is the best of those accepted before.
    """
    if not best:
        return KeptPRM(best, "")
    measured = held_out.best_prm_within_problem_auc
    auc = held_out.pool.prm_within_problem_auc if measured is None else measured
    if auc is None or not fails(auc):
        return KeptPRM(best, f"; the PRM of round {best} stays")
    accepted = [row.round for row in context.run.rows() if row.prm_accepted and row.round != best]
    wanted = [Evaluation("held_out", "samples", f"samples-prm-{earlier}", earlier) for earlier in accepted]
    with context.stage(number, "evaluate earlier PRMs") as event:
        event.failures = run_evaluations(context, number, policy, wanted)
    folder = context.run.evaluation(number, "held_out")
    chosen = fall_back({earlier: folder_auc(folder / f"samples-prm-{earlier}") for earlier in accepted})
    instead = ", the search goes on without one" if chosen is None else f" for that of round {chosen}"
    return KeptPRM(chosen, f"; the PRM of round {best} has {auc:.3f} on the new policy's solutions and is given up{instead}")
