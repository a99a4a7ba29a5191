"""One round: search -> label -> train both models -> evaluate -> gate. Round 0 is the warm-up: train on solved problems, evaluate.

With ``prm.when = "before-search"`` a round samples and trains the PRM first. With ``run.update_every`` the policy is trained during the
search. With ``run.overlap`` the next round begins before a round ends (``ahead``).

Each stage lists what it must write, leaves out what exists, and hands the rest to the workers. A job depends on nothing that an earlier one
left in its process: caches of keys and values are built anew, and every seed is derived from names. So a killed run ends with the bytes of
one that was never killed.
"""

from dataclasses import replace

from stepladder.loops.runs.results import RoundRow, RoundTraining
from stepladder.loops.stages.ahead import begin_next_round, end_round, overlap_figures
from stepladder.loops.stages.context import BestModels, RoundContext
from stepladder.loops.stages.figures import levels_of, search_figures
from stepladder.loops.stages.judge import judge
from stepladder.loops.stages.kinds import ROLLOUTS, TREES
from stepladder.loops.stages.label import label, label_imported
from stepladder.loops.stages.nothing_learned import check_solved_problems_give_rows, why_nothing_is_learned
from stepladder.loops.stages.online import train_online
from stepladder.loops.stages.prm_rows import prm_shards
from stepladder.loops.stages.problem_states import write_problems
from stepladder.loops.stages.refine import refine, refinement_counts
from stepladder.loops.stages.rollouts import estimate, roll_out
from stepladder.loops.stages.round_rules import with_round_settings
from stepladder.loops.stages.search import search
from stepladder.loops.stages.train_policy import learns_policy, policy_shards, train_policy, warm_up
from stepladder.loops.stages.train_prm import PRMOutcome, train_prm


def run_round(context: RoundContext, number: int) -> RoundRow:
    """Run the missing parts of a round with its own settings, and return its figures, without ``seconds``."""
    if number == 0:
        best, training = BestModels(policy=0, prm=context.config.prm.version(0)), RoundTraining(policy=warm_up(context))
        begin_next_round(context, 0, best, has_prm=True)
        row = judge(context, 0, best, training=training)
        end_round(context, row, best)
        return row
    before = context.run.row(number - 1)
    assert before is not None, "rounds run in order"
    best = BestModels(policy=before.best_policy, prm=before.best_prm)
    context, own = with_round_settings(context, number, best)
    # A shard of an earlier round that is gone is refused now, not after a search.
    policy_shards(context, number)
    prm_shards(context, number)
    config, prm, estimated_tokens = context.config, None, 0
    if (kept := config.prm.version(best.policy)) is not None:
        best = replace(best, prm=kept)
    if config.prm.samples_first:
        roll_out(context, number, best.policy)
        prm, estimated_tokens = _learn_prm(context, number, best, best.policy)
    overlap = overlap_figures(context, number, best)
    guiding = best.prm if overlap is None or overlap.scorer_version is None else overlap.scorer_version
    models, online = context.models(number, best.policy, _searching_prm(context, number, guiding)), None
    if config.run.update_every is not None:
        online = train_online(context, number, models)
    search(context, number, models)
    refined_tokens = refine(context, number, models)
    labels = refinement_counts(context, number, label(context, number, replace(best, prm=guiding)))
    label_imported(context, best.policy)
    check_solved_problems_give_rows(context, number, labels)
    nothing_learned = None if learns_policy(context, number) else why_nothing_is_learned(context, number)
    policy = train_policy(context, number, best.policy) if online is None else online
    newest = context.newest_policy(number, best.policy)
    # At the end of a round without a new policy there is nothing new to sample.
    if not config.prm.samples_first and newest == number:
        roll_out(context, number, newest)
    write_problems(context, number)
    has_begun = begin_next_round(context, number, best, has_prm=False)
    if not config.prm.samples_first:
        prm, estimated_tokens = _learn_prm(context, number, best, newest)
    if not has_begun:
        begin_next_round(context, number, best, has_prm=True)
    rollouts, levels = context.run.shards(ROLLOUTS.name, rounds=[number]), levels_of(context.problems["train"])
    found = search_figures(
        context.paths(number, TREES),
        levels,
        sampled_before=rollouts if config.prm.samples_first else (),
        continued=config.search.start == "first-samples",
    )
    rolled_out = search_figures(rollouts)
    row = judge(
        context,
        number,
        best,
        training=RoundTraining(policy=policy, prm=prm),
        search=replace(found, rollout_tokens=rolled_out.generated_tokens + estimated_tokens + refined_tokens),
        labels=labels,
        nothing_learned=nothing_learned,
        own=own,
        overlap=overlap,
    )
    end_round(context, row, best)
    return row


def _searching_prm(context: RoundContext, number: int, earlier: int | None) -> int | None:
    """Return the PRM that guides a round's search: its own if it is trained before, else an earlier one."""
    if not context.config.prm.enabled:
        return None
    return number if context.config.prm.samples_first and context.run.prm(number).exists() else earlier


def _learn_prm(context: RoundContext, number: int, best: BestModels, policy_version: int) -> tuple[PRMOutcome | None, int]:
    """Train what the configuration wants for the PRM of a policy; return its training, and the tokens of estimates."""
    estimated_tokens = estimate(context, number, policy_version)
    return train_prm(context, number, best, policy_version), estimated_tokens
