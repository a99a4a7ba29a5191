"""Sentences about what is known to go wrong in self-improvement, from the figures of finished rounds.

A round without training rows has a sentence of its own, ``RoundRow.nothing_learned``.
"""

from collections.abc import Callable, Sequence

from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.split_figures import SplitFigures

NOTICEABLE = 0.02
"""Changes of a share by less than this are no news."""
_FEWEST = 0.02
"""A class with a smaller share has nearly vanished."""


def warnings_of(earlier: Sequence[RoundRow], row: RoundRow) -> tuple[str, ...]:
    """Return the warnings about a round, held-out figures only.

    Args:
        earlier: The finished rounds before it, the warm-up first.
        row: The round.
    """
    found = (rule(earlier, row) for rule in _RULES)
    return tuple(sentence for sentence in found if sentence is not None)


def _diversity(earlier: Sequence[RoundRow], row: RoundRow) -> str | None:
    """Sampled solutions get better one by one and worse together, or all of them the same."""
    if not earlier:
        return None
    start, now = earlier[0].held_out, row.held_out
    one, best = _change(start.pool.sampled_pass_at_1, now.pool.sampled_pass_at_1), _change(start.pool.pass_at_k, now.pool.pass_at_k)
    if one is not None and best is not None and one > NOTICEABLE and best < -NOTICEABLE:
        return (
            f"diversity collapses: since the warm-up pass@1 of samples rose by {100 * one:.1f} points, and pass@{now.pool.num_samples} "
            f"fell by {-100 * best:.1f} -- raise the temperature of searches, train less, or keep seed data (labels.replay)"
        )
    before, after = _surprisal(start), _surprisal(now)
    if before is not None and after is not None and after < before / 4:
        return (
            f"diversity collapses: the surprisal of a sampled token fell from {before:.3f} to {after:.3f} nats since the warm-up -- lower "
            "learning rates, or keep seed data (labels.replay)"
        )
    return None


def _over_optimised(earlier: Sequence[RoundRow], row: RoundRow) -> str | None:
    """The PRM promises more, and the verifier grants less."""
    if not earlier or earlier[-1].held_out.monitors is None or row.held_out.monitors is None:
        return None
    before, now = earlier[-1].held_out.monitors, row.held_out.monitors
    score, right = _change(before.top_score, now.top_score), _change(before.top_right, now.top_right)
    if score is None or right is None or score <= NOTICEABLE or right >= -NOTICEABLE:
        return None
    return (
        f"the PRM may be gamed: the scores of the samples that it likes best rose by {score:.3f}, and the share of right ones among them "
        f"fell by {-100 * right:.1f} points -- train the PRM on new rollouts (prm.rollouts), or bound its scores (search.scores.bound)"
    )


def _unsound(earlier: Sequence[RoundRow], row: RoundRow) -> str | None:
    """Right answers come from wrong steps, more often than in the warm-up."""
    if not earlier or earlier[0].held_out.monitors is None or row.held_out.monitors is None:
        return None
    share = row.held_out.monitors.unsound_right
    change = _change(earlier[0].held_out.monitors.unsound_right, share)
    if share is None or change is None or change <= NOTICEABLE:
        return None
    return (
        f"right answers with wrong steps: {share:.1%} of the right samples with equations state a false one, {100 * change:.1f} points "
        "more than in the warm-up -- check the arithmetic of steps (search.scores.check), or train on fewer traces per problem"
    )


def _vanishing(earlier: Sequence[RoundRow], row: RoundRow) -> str | None:
    """Nearly all samples are right, or nearly none is."""
    right = row.held_out.pool.sampled_pass_at_1
    if right is None or _FEWEST <= right <= 1 - _FEWEST:
        return None
    kind, remedy = ("wrong", "take harder problems") if right > 0.5 else ("right", "take easier problems, or warm up on solved ones")
    return f"{kind} samples vanish: {right:.1%} of the held-out samples are right, so a PRM learns from one side alone -- {remedy}"


def _refused_twice(earlier: Sequence[RoundRow], row: RoundRow) -> str | None:
    """Two policies were refused, one after the other."""
    if len(earlier) < 2 or row.accepted or earlier[-1].accepted or not (row.trained_policy and earlier[-1].trained_policy):
        return None
    return (
        f"the policies of rounds {earlier[-1].round} and {row.round} were refused -- search more, lower learning rates, or start from the "
        "base (start_from)"
    )


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _surprisal(figures: SplitFigures) -> float | None:
    return None if figures.monitors is None else figures.monitors.surprisal_per_token


_RULES: tuple[Callable[[Sequence[RoundRow], RoundRow], str | None], ...] = (
    _diversity,
    _over_optimised,
    _unsound,
    _vanishing,
    _refused_twice,
)
"""In the order of the sentences."""
