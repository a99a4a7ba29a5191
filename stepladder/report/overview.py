"""What was run: task, models, search, PRM, machine. And what it cost: tokens per second, memory, tokens and seconds per solved problem."""

from collections.abc import Sequence

from stepladder.loops.config.run import Config
from stepladder.loops.config.schedule import round_config
from stepladder.loops.runs.description import model_words, prm_words, search_words, task_words
from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.stage_times import StageTimes
from stepladder.report.figures import MISSING, count, decimals
from stepladder.report.markup import Markup, html, lead, table


def what_was_run(config: Config, rows: Sequence[RoundRow], stages: StageTimes) -> Markup:
    """Return the facts without which a page cannot be understood, as a list of terms."""
    sizes = rows[-1] if rows else None
    problems = "" if sizes is None else f"; {sizes.test.problems:,} test and {sizes.held_out.problems:,} held-out problems"
    facts = [
        ("Task", task_words(config) + problems),
        ("Policy", _policy(config, rows)),
        ("Search", search_words(config.search)),
        ("Measured with", f"{search_words(config.evaluate)}; {config.evaluate.samples} samples"),
        ("PRM", prm_words(config)),
        ("Machine", stages.machine or "not recorded"),
        ("Seed", f"{config.run.seed}; run of {config.run.rounds} rounds"),
    ]
    listed = "".join(f"<div><dt>{html(name)}</dt><dd>{html(words)}</dd></div>" for name, words in facts)
    return Markup(f'<dl class="facts" aria-label="What was run">{listed}</dl>')


def _policy(config: Config, rows: Sequence[RoundRow]) -> str:
    words = model_words(config)
    known = next((row.flops.parameters for row in rows if row.flops is not None), None)
    # The base model may have moved since; its size was noted.
    return words if "parameters" in words or known is None else f"{words}, {count(known)} parameters"


def costs(rows: Sequence[RoundRow], stages: StageTimes, config: Config) -> list[Markup]:
    """Return the table of costs by round: throughput of search and training, memory, and what a solved problem cost."""
    cells = []
    for row in rows:
        seconds = stages.seconds.get(row.round, {})
        searched, solved = row.search, 0 if row.search is None else row.search.solved
        # Samples from before the search count among the solved problems, so they count among the costs.
        samples = searched is not None and round_config(config, row.round).prm.samples_first
        spent = 0 if searched is None else searched.generated_tokens + (searched.rollout_tokens if samples else 0)
        trained = sum(summary.tokens for summary in row.training.policy.stages.values())
        search_s = None if "search" not in seconds else seconds["search"] + stages.work.early.get(row.round, {}).get("search", 0.0)
        spent_s = None if search_s is None else search_s + (seconds.get("rollouts", 0.0) if samples else 0.0)
        cells.append(
            (
                row.round,
                _rate(None if searched is None else searched.generated_tokens, search_s),
                _rate(row.held_out.tokens.together + row.test.tokens.together, seconds.get("evaluate")),
                _rate(trained, seconds.get("train policy")),
                MISSING if searched is None or not solved else count(spent / solved),
                MISSING if not solved or spent_s is None else f"{decimals(spent_s / solved, 2)} s",
                MISSING if row.round not in stages.memory_mb else f"{stages.memory_mb[row.round] / 1024:.1f} GB",
            )
        )
    header = (
        "round",
        "search, tokens/s",
        "evaluation, tokens/s",
        "policy training, tokens/s",
        "tokens per solved problem",
        "time per solved problem",
        "memory of the workers",
    )
    said = lead(
        "Tokens per solved problem are those of the round's training search and of the samples before it, if there are any, divided by the "
        "problems that they solved. Time is that of the whole machine, loading of models included."
    )
    return [Markup("<h3>Cost</h3>"), said, table(header, cells)]


def _rate(tokens: int | None, seconds: float | None) -> str:
    return MISSING if not tokens or not seconds else count(tokens / seconds)
