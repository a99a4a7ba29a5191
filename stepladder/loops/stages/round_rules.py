"""The rules of a schedule, applied: a round's own settings, from its table and from the rounds before it, and the end of a run.

The settings are written to ``settings.json`` before the first stage of the round. A continued round reads them there.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from stepladder.loops.config.rules import EarlyStopRule, HeldOutFigure, HillClimbRule
from stepladder.loops.config.schedule import round_config
from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.round_settings import RoundSettings, changed_settings
from stepladder.loops.runs.split_figures import value_of
from stepladder.loops.stages.balance import balanced_settings
from stepladder.loops.stages.context import BestModels, RoundContext


class Tried(NamedTuple):
    """A value of a setting, and what a round with it achieved."""

    value: float
    """The value."""
    figure: float | None
    """The figure that should rise; None if it was not measured."""


def with_round_settings(context: RoundContext, number: int, best: BestModels) -> tuple[RoundContext, RoundSettings]:
    """Return the run with the settings of a round, and their record.

    Args:
        context: The run.
        number: The round, >= 1.
        best: The best models before it, which a probe samples from.

    Raises:
        ConfigError: If a rule gives a value that is impossible.
    """
    run, config = context.run, context.run_config
    path = run.round_settings(number)
    own = RoundSettings.load(path)
    if own is None:
        computed: dict[str, Any] = {}
        evidence: dict[str, Any] = {}
        tokens = 0
        if (climb := config.rules.hill_climb) is not None:
            tried = _tried(run.rows(), [RoundSettings.load(run.round_settings(earlier)) for earlier in range(number)], climb)
            computed[climb.setting] = next_value(climb, tried)
            evidence["hill_climb"] = [list(each) for each in tried]
        if config.rules.balance is not None:
            probed = balanced_settings(context.in_round(round_config(config, number, computed)), number, best)
            computed |= probed.settings
            evidence["balance"], tokens = probed.evidence, probed.tokens
        settings = changed_settings(config, round_config(config, number, computed))
        own = RoundSettings(settings=settings, computed=computed, evidence=evidence, probe_tokens=tokens)
        if settings or computed:
            own.save(path)
    return context.in_round(round_config(config, number, own.computed)), own


def next_value(rule: HillClimbRule, tried: Sequence[Tried]) -> float:
    """Return the next value of a hill-climb.

    A value whose figure is more than ``least_gain`` above the best one before is the new best, and the next value lies a step further.
    Otherwise the step turns round and is halved, and the next value lies that step from the best one. Values stay within the bounds.

    Args:
        rule: The rule.
        tried: The values of the rounds so far, in order.

    Source: Zhao et al. 2024, "Automatic Curriculum Expert Iteration for Reliable LLM Reasoning" (Auto-CEI), climb one coefficient. Turning
        round with half the step is ours.
    """
    whole = isinstance(rule.start, int) and isinstance(rule.step, int)
    value, step, best = float(rule.start), float(rule.step), None
    for each in tried:
        if best is None or (each.figure is not None and (best.figure is None or each.figure > best.figure + rule.least_gain)):
            best = each
        else:
            step = -step / 2
        value = best.value + step
    low, high = -float("inf") if rule.low is None else rule.low, float("inf") if rule.high is None else rule.high
    value = min(max(value, low), high)
    return round(value) if whole else value


def stops_early(rows: Sequence[RoundRow], rule: EarlyStopRule | None) -> str | None:
    """Return the reason for which a run ends after its finished rounds; None if it goes on.

    Args:
        rows: The finished rounds, the warm-up first.
        rule: The rule; None never ends a run.
    """
    if rule is None or len(rows) <= rule.patience:
        return None
    before, now = (value_of(rows[row.best_policy].held_out.pass_at_1) for row in (rows[-1 - rule.patience], rows[-1]))
    if before is None or now is None or now - before > rule.least_gain:
        return None
    return (
        f"the run ends after round {rows[-1].round}: {rule.patience} rounds changed the held-out pass@1 of the best policy from "
        f"{before:.3f} to {now:.3f} (rules.early_stop)"
    )


def _tried(rows: Sequence[RoundRow], settings: Sequence[RoundSettings | None], rule: HillClimbRule) -> list[Tried]:
    return [
        Tried(float(own.computed[rule.setting]), held_out_figure(row, rule.figure))
        for row, own in zip(rows, settings, strict=False)
        if own is not None and rule.setting in own.computed
    ]


def held_out_figure(row: RoundRow, name: HeldOutFigure) -> float | None:
    """Return a held-out figure of a round; None if it was not measured."""
    if name == "pass_at_1":
        return value_of(row.held_out.pass_at_1)
    if name == "reliability":
        return None if row.held_out.abstention is None else row.held_out.abstention.reliability
    return getattr(row.held_out.pool, name)
