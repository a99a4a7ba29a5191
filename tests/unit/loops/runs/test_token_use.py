"""What is told about the reuse of prefixes: by hand, and in what ``solve`` prints."""

import json
from dataclasses import dataclass, replace

import pytest
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.interfaces import TokenCounts
from stepladder.loops.runs.token_use import TokenUse, unique_share, unique_tokens, use_path
from stepladder.policy.prompts import StepFormat
from stepladder.testing import make_step
from stepladder.types import Budget, StopReason, TreeRecord
from tests.models import save_tiny_policy
from tests.searches import one


@dataclass
class _Backend:
    token_counts: TokenCounts | None = None


@dataclass
class _Scorer:
    forwarded_tokens: int


def test_counts_and_ratios_by_hand():
    """Four samples behind ten tokens of which three found eight cached: 40 - 24 prefix tokens and 20 - 4 sampled ones are forwarded."""
    counts = TokenCounts(prefix_tokens=40, cached_tokens=24, generated_tokens=20, forwarded_tokens=32)
    use = TokenUse.of(_Backend(counts), _Scorer(33), unique_tokens=30)
    assert (use.cached_share, use.policy_ratio, use.prm_ratio) == pytest.approx((0.6, 32 / 30, 1.1))
    assert use.sentence() == "60% of prefix tokens cached, policy forwarded 1.07 tokens per token of the trees, PRM 1.10"
    assert use.figures() == {
        "unique_tokens": 30,
        "forwarded_tokens": 32,
        "prefix_tokens": 40,
        "cached_tokens": 24,
        "prm_forwarded_tokens": 33,
        "cached_share": 0.6,
        "forwarded_per_unique_token": 1.0667,
        "prm_forwarded_per_unique_token": 1.1,
    }
    both = TokenUse.sum([use, use])
    assert (both.unique_tokens, both.forwarded_tokens, both.policy_ratio) == (60, 64, use.policy_ratio)


def test_the_unique_share_by_hand():
    """Four samples of one token, of which two are equal, make three nodes; a tree without samples has no share."""

    def policy(prefix, index, seed):
        return make_step("abca"[index])

    tree = one(policy=policy, num_children=4, budget=Budget(num_simulations=1)).tree
    assert tree.generated_tokens == 4 and unique_share([tree]) == 0.75 and unique_share([]) is None
    # Four more tokens that were sampled before the search.
    assert unique_share([tree], sampled_before=4) == 0.375
    # Another tree with the same steps adds none; of another problem, they are other steps.
    again = one(policy=policy, num_children=3, budget=Budget(num_simulations=1)).tree
    assert unique_share([again, tree]) == round(3 / 7, 4)
    assert unique_share([replace(again, problem_id="other"), tree]) == round(6 / 7, 4)


def test_draws_that_repeat_each_other_are_counted_once():
    """Four draws, "ab" three times and "cb" once, have a node for each draw's last step, but four different steps of eight."""

    def policy(prefix, index, seed):
        first = prefix[-1] == ord("\n")
        return make_step("c" if first and index == 3 else "a") if first else make_step("b", stop_reason=StopReason.END)

    tree = one("majority", policy=policy, scorer=None, wave=4, budget=Budget(num_simulations=4)).tree
    assert sum(map(len, tree.token_ids)) == 6 and tree.generated_tokens == 8
    assert unique_share([tree]) == 0.5


def test_what_a_backend_does_not_tell_stays_unknown():
    """Without counts there is nothing to say, and one silent part makes a sum unknown; no trees give no ratio."""
    silent = TokenUse.of(_Backend(), None, unique_tokens=5)
    assert silent.sentence() is None and silent.figures()["cached_share"] is None
    told = TokenUse.of(_Backend(), _Scorer(5), unique_tokens=5)
    assert TokenUse.sum([told, silent]).prm_forwarded_tokens is None
    assert TokenUse.sum([]).policy_ratio is None


def test_solve_says_how_much_was_reused(tmp_path):
    """For one question, as text and as JSON, and for a file; on the embedded engine the JSON's counts are those of the tree."""
    folder = save_tiny_policy(tmp_path / "model")
    StepFormat().save(folder)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"id": "{i}", "question": "{i}+1"}}\n' for i in range(3)))
    common = ["--policy", str(folder), "--simulations", "6", "--set", "search.max_step_tokens=12", "--set", "policy.device=cpu"]
    text = CliRunner().invoke(app, ["solve", "1+2", *common, "-v"])
    assert text.exit_code == 0 and "% of prefix tokens cached, policy forwarded" in text.output
    tree_path = tmp_path / "tree.json"
    done = CliRunner().invoke(app, ["solve", "1+2", *common, "--json", "--tree", str(tree_path)])
    row = json.loads(done.stdout)
    use, tree = row["token_use"], TreeRecord.from_dict(json.loads(tree_path.read_text()))
    assert use["unique_tokens"] == unique_tokens(tree) == len(tree.prompt_ids) + sum(map(len, tree.token_ids))
    # All samples are nodes here; of each, the last token is forwarded only if the node is expanded.
    assert 0.5 < use["forwarded_per_unique_token"] <= 1.05
    assert use["cached_share"] > 0.5 and use["prm_forwarded_tokens"] is None
    done = CliRunner().invoke(app, ["solve", "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"), *common, "-v"])
    assert done.exit_code == 0 and "policy forwarded" in done.output


def test_the_use_of_a_shard_stands_beside_it(tmp_path):
    """The file has the shard's name, and no name that a search for shards finds."""
    assert use_path(tmp_path / "shard-0003.parquet").name == "shard-0003.tokens.json"
