"""Rounds that overlap (``run.overlap``): workers that have nothing else to do begin the next round while a round ends.

A round ends with the training of its PRM and with its evaluation, which leave workers idle. Then they sample for the next round with the
policy that this round has just trained. Only the first stage of the next round begins early: its search, or the graded samples with which
a round with ``prm.when = "before-search"`` begins.

- The search scores with the best PRM before this round. So a PRM is one round old at most. Without an earlier PRM, and where the
  policy's training trains it, the search begins after the training of this round's PRM, with that one.
- If the gate refuses the policy, what was sampled is thrown away, and the round begins as without overlap. So it does where neither the
  PRM that the search used nor this round's guides the next search, because both rank no better than chance.

Which models search depends on finished rounds only, never on times. So the bytes of the data are the same for any number of workers.
"""

import shutil

from stepladder.loops.config.schedule import round_config
from stepladder.loops.runs.results import OverlapFigures, RoundRow
from stepladder.loops.stages.context import BestModels, RoundContext
from stepladder.loops.stages.kinds import trains_two_heads
from stepladder.loops.stages.rollouts import rollout_tasks
from stepladder.loops.stages.round_rules import stops_early
from stepladder.loops.stages.search import first_tasks


def begin_next_round(context: RoundContext, number: int, best: BestModels, *, has_prm: bool) -> bool:
    """Give the first stage of the next round to idle workers; return whether it could begin.

    Args:
        context: A round whose policy and table of problems are final.
        number: The round.
        best: The best models before it.
        has_prm: Whether the training of its PRM is over.
    """
    if not context.run_config.run.overlap or number >= context.last:
        return False
    following = _following(context, number)
    if not has_prm and _needs_own_prm(following, best.prm):
        return False
    policy = context.newest_policy(number, best.policy)
    if following.config.prm.samples_first:
        stage, tasks = "rollouts", rollout_tasks(following, number + 1, policy)
    else:
        prm = _search_prm(following, number, best.prm, policy) if following.config.prm.enabled else None
        stage, tasks = "search", first_tasks(following, number + 1, following.models(number + 1, policy, prm))
    context.run.log_event("ahead", round=number + 1, stage=stage, shards=len(tasks))
    context.pool.ahead(tasks)
    return True


def end_round(context: RoundContext, row: RoundRow, best: BestModels) -> None:
    """Throw away what the next round has sampled if the gate did not accept the models of this one, or if the run ends here.

    Args:
        context: The round.
        row: Its figures.
        best: The best models before it.
    """
    if not context.run_config.run.overlap:
        return
    is_over = stops_early([*context.run.rows()[: row.round], row], context.run_config.rules.early_stop) is not None
    if is_over or not _stands(_following(context, row.round), row, best.prm):
        context.pool.drop_ahead()
        sampled = context.run.round(row.round + 1)
        if sampled.exists():
            shutil.rmtree(sampled)
            context.run.log_event("thrown_away", round=row.round + 1)
            if not is_over:
                context.display.say(f"round {row.round + 1}: begins again, because the gate refused the models that it had begun with")


def overlap_figures(context: RoundContext, number: int, best: BestModels) -> OverlapFigures | None:
    """Return the models with which a round samples first; None without ``run.overlap``.

    Args:
        context: The round.
        number: The round, >= 1.
        best: The best models before it.
    """
    if not context.run_config.run.overlap:
        return None
    before = context.run.row(number - 1)
    assert before is not None, "rounds run in order"
    earlier = context.run.row(number - 2) if number > 1 else None
    best_before = context.run_config.prm.version(0) if earlier is None else earlier.best_prm
    stands, prm = _stands(context, before, best_before), None
    if context.config.prm.enabled and not context.config.prm.samples_first:
        prm = _search_prm(context, number - 1, best_before, before.policy_version) if stands else best.prm
    return OverlapFigures(
        policy_version=best.policy, scorer_version=prm, prm_rounds_old=int(prm not in (None, best.prm)), began_early=stands
    )


def _following(context: RoundContext, number: int) -> RoundContext:
    return context.in_round(round_config(context.run_config, number + 1))


def _needs_own_prm(following: RoundContext, best_prm: int | None) -> bool:
    """Say whether the search of a round needs the PRM of the round before it."""
    prm = following.config.prm
    return prm.trains and not following.config.prm.samples_first and (best_prm is None or trains_two_heads(following.config))


def _search_prm(following: RoundContext, number: int, best_prm: int | None, policy: int) -> int | None:
    """Return the PRM with which a round searches that begins while the round before it ends.

    Args:
        following: The round that begins.
        number: The round before it.
        best_prm: The best PRM before that.
        policy: The policy that searches.
    """
    prm = following.config.prm
    if (kept := prm.version(policy)) is not None:
        return kept
    is_trained = following.run.prm(number).exists()
    return number if is_trained and _needs_own_prm(following, best_prm) else best_prm


def _stands(following: RoundContext, row: RoundRow, best_prm: int | None) -> bool:
    """Say whether a round may use what it sampled before the round before it had ended.

    Args:
        following: The round that began early.
        row: The figures of the round before it.
        best_prm: The best PRM before that.
    """
    if row.best_policy != row.policy_version:
        return False
    prm = following.config.prm
    if following.config.prm.samples_first or not prm.trains:
        return True
    return row.best_prm in (_search_prm(following, row.round, best_prm, row.policy_version), row.round)
