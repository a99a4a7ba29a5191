"""The stages of a round in their order, what each is for, and how long the rest of a run may take."""

from collections.abc import Mapping, Sequence

from stepladder.loops.config.run import Config
from stepladder.loops.config.schedule import round_config
from stepladder.loops.stages.kinds import estimates_values, trains_two_heads

PURPOSES = {
    "probe": "samples at several temperatures choose that of this round",
    "search": "looks for right solutions of the training problems",
    "search and train policy": "searches, and trains the policy in between",
    "refine": "the judge mends solutions that it rejects",
    "label": "turns the searched trees into training rows",
    "train policy": "the policy learns from the rows",
    "rollouts": "samples solutions for the PRM to learn from",
    "estimates": "samples ends of partial solutions, which value their steps",
    "train prm": "the PRM learns to score steps",
    "evaluate": "measures the new models on held-out and test problems",
    "evaluate earlier PRMs": "looks for a PRM that still ranks the new policy's solutions",
}
"""What every stage is for, in one clause."""
WARM_UP = "the policy learns from solved examples"

Plan = Mapping[int, Sequence[str]]
"""Rounds with their stages."""


def planned_stages(config: Config, number: int) -> list[str]:
    """Return the stages of a round in their order. A round may leave some out, when it has no rows for them."""
    if number == 0:
        return [*([] if config.warmup.solutions is None else ["train policy"]), "evaluate"]
    settings = round_config(config, number)
    values = [
        *(["rollouts"] if settings.prm.trains and settings.prm.rollouts else []),
        *(["estimates"] if estimates_values(settings) else []),
        *(["train prm"] if settings.prm.trains and not trains_two_heads(settings) else []),
    ]
    before, after = (values, []) if settings.prm.samples_first else ([], values)
    probe = [] if settings.rules.balance is None else ["probe"]
    if settings.run.update_every is not None:
        return [*probe, *before, "search and train policy", "search", "label", *after, "evaluate"]
    refine = [] if settings.search.refinement is None else ["refine"]
    return [*probe, *before, "search", *refine, "label", "train policy", *after, "evaluate"]


def purpose(number: int, stage: str) -> str:
    """Return what a stage of a round is for."""
    return WARM_UP if (number, stage) == (0, "train policy") else PURPOSES.get(stage, "")


def seconds_left(
    plan: Plan, spent: Mapping[int, Mapping[str, float]], *, number: int, stage: str, elapsed: float, stage_left: float | None
) -> float | None:
    """Estimate the rest of a run: every stage to come takes as long as it took in the round before.

    Args:
        plan: The rounds with their stages, up to the last one.
        spent: Seconds of finished stages by round.
        number: The round that runs.
        stage: The stage that runs.
        elapsed: Its seconds so far.
        stage_left: Its seconds to come, if it says so; None takes those of the round before.

    Returns:
        Seconds; None while a stage is to come that has not run yet.
    """
    usual = _usual(spent)
    stages = plan.get(number, ())
    if stage_left is None and stage in usual:
        stage_left = max(usual[stage] - elapsed, 0.0)
    later = list(stages[stages.index(stage) + 1 :]) if stage in stages else []
    later += [each for other, names in plan.items() if other > number for each in names]
    if stage_left is None or any(each not in usual for each in later):
        return None
    return stage_left + sum(usual[each] for each in later)


def _usual(spent: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Return the seconds of every stage in its newest round; the training of the warm-up is like no other."""
    usual: dict[str, float] = {}
    for number in sorted(spent):
        usual |= {stage: seconds for stage, seconds in spent[number].items() if (number, stage) != (0, "train policy")}
    return usual
