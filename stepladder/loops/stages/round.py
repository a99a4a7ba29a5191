"""One round: search -> label -> train both models -> evaluate -> gate. Round 0 is the warm-up: train on solved problems, evaluate.

Each stage lists what it must write, leaves out what exists, and hands the rest to the workers. A job depends on nothing that an earlier one
left in its process: caches of keys and values are built anew, and every seed is derived from names. So a killed run ends with the bytes of
one that was never killed.
"""

from dataclasses import replace

from stepladder.loops.runs.results import RoundRow, RoundTraining
from stepladder.loops.stages.context import BestModels, RoundContext
from stepladder.loops.stages.figures import levels_of, search_figures
from stepladder.loops.stages.judge import judge
from stepladder.loops.stages.kinds import ROLLOUTS, TREES
from stepladder.loops.stages.label import label, label_imported
from stepladder.loops.stages.nothing_learned import check_solved_problems_give_rows, why_nothing_is_learned
from stepladder.loops.stages.rollouts import estimate, roll_out
from stepladder.loops.stages.round_settings import with_round_settings
from stepladder.loops.stages.search import search
from stepladder.loops.stages.train_policy import learns_policy, train_policy, warm_up
from stepladder.loops.stages.train_prm import train_prm


def run_round(context: RoundContext, number: int) -> RoundRow:
    """Run the missing parts of a round with its own settings, and return its figures, without ``seconds``."""
    if number == 0:
        given = 0 if context.config.prm.enabled and context.config.prm.start == "fixed" else None
        return judge(context, 0, BestModels(policy=0, prm=given), training=RoundTraining(policy=warm_up(context)))
    before = context.run.row(number - 1)
    assert before is not None, "rounds run in order"
    best = BestModels(policy=before.best_policy, prm=before.best_prm)
    context, own = with_round_settings(context, number, best)
    if context.config.prm.enabled and context.config.prm.start == "fixed":
        best = replace(best, prm=0)
    search(context, number, best)
    labels = label(context, number, best)
    label_imported(context, best.policy)
    check_solved_problems_give_rows(context, number, labels)
    nothing_learned = None if learns_policy(context, number) else why_nothing_is_learned(context, number)
    policy = train_policy(context, number, best.policy)
    roll_out(context, number)
    estimated_tokens = estimate(context, number, best.policy)
    prm = train_prm(context, number, best)
    found = search_figures(context.run.shards(TREES.name, rounds=[number]), levels_of(context.problems["train"]))
    rolled_out = search_figures(context.run.shards(ROLLOUTS.name, rounds=[number]))
    return judge(
        context,
        number,
        best,
        training=RoundTraining(policy=policy, prm=prm),
        search=replace(found, rollout_tokens=rolled_out.generated_tokens + estimated_tokens),
        labels=labels,
        nothing_learned=nothing_learned,
        own=own,
    )
