"""What a report says of costs, and of the caps of a search."""

from dataclasses import replace

from stepladder.loops.config.load import with_overrides
from stepladder.loops.runs.description import search_words
from stepladder.loops.runs.stage_times import StageTimes
from stepladder.report.overview import costs
from tests.report_run import SEARCH, config, row


def test_samples_before_a_search_are_part_of_what_a_solved_problem_costs() -> None:
    """339 problems were solved by 96,000 tokens in 100 s; samples before the search solve as well, and add 5,700 tokens and 13 s."""
    rows = [replace(row(1, policy=0.3, search=0.3, majority=0.3), search=replace(SEARCH, rollout_tokens=5_700))]
    spent = {1: {"search": 100.0, "rollouts": 13.0}}
    stages = StageTimes(seconds=spent, begin=0.0, end=200.0, num_starts=1, num_cut=0, num_unreadable=0)
    settings = with_overrides(config(), ["prm.rollouts=2"])
    after = "".join(costs(rows, stages, settings))
    assert ">283<" in after and ">0.29 s<" in after
    before = "".join(costs(rows, stages, with_overrides(settings, ["prm.when=before-search"])))
    assert ">300<" in before and ">0.33 s<" in before


def test_a_cap_on_tokens_is_where_nothing_more_begins() -> None:
    """The searches of a run finish what they have begun, so "at most" is said of simulations alone."""
    section = with_overrides(config(), ["search.method=beam", "search.simulations=1000", "search.max_tokens=500"]).search
    assert search_words(section) == "beam, at most 1,000 simulations a problem, none begun after 500 tokens"
    assert search_words(section.model_copy(update={"max_tokens": None})) == "beam, at most 1,000 simulations a problem"
