"""Every loss and every rule that a configuration can name, from searched trees to a trained policy, by the jobs that a round runs.

Losses and rules are taken from the tables that define them, so a new one is tested without being named here.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM

from stepladder.data.labels.advantage_rules import ADVANTAGE_RULES
from stepladder.data.labels.pair_rules import PAIR_RULES
from stepladder.data.store import read_graded, read_pairs, read_traces, read_trees, write_trees
from stepladder.errors import ConfigError
from stepladder.lm.completions import IGNORE, completion_logps, contrast_sums
from stepladder.lm.loading import load_tokenizer
from stepladder.loops.assembly.checks import check_labels
from stepladder.loops.assembly.policies import build_renderer
from stepladder.loops.assembly.problem_sets import build_problems
from stepladder.loops.config.load import load_config, with_overrides
from stepladder.loops.config.run import Config
from stepladder.loops.config.search import LabelsConfig
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.results import LabelCounts, RowCounts, TrainingSummary
from stepladder.loops.stages.context import Models, RoundContext
from stepladder.loops.stages.kinds import ADVANTAGES, GRADED, PAIRS, preference_kind
from stepladder.loops.stages.label import earlier_prm, label_shard
from stepladder.loops.stages.search import search_shard
from stepladder.loops.stages.train_policy import train_on_advantages, train_on_preferences, train_on_solutions, warm_up_policy
from stepladder.loops.stages.tree_rows import LabelSources, score_trees
from stepladder.policy.fine_tuning import collate_preferences, preference_rows
from stepladder.policy.gradient import collate_gradient, gradient_rows
from stepladder.policy.preference_settings import PREFERENCE_LOSSES
from stepladder.prm.specs import PRMSpec
from stepladder.testing import TableScorer
from stepladder.types import AdvantageRow, PreferencePair, Provenance
from tests.models import save_tiny_scorer
from tests.report_run import row
from tests.runs import write_tiny_config

# Whatever the rule: pairs however close they are.
LOOSE = {"min_margin": 0.0, "min_edit_distance": 1, "rejected_must_fail": "false"}
# Losses differ in the size of their gradients, Adam's steps do not; the margin has to rise in a few of them.
TRAINING = {"learning_rate": 3e-4, "epochs": 4.0, "max_updates": 8, "batch_size": 16}


class World:
    """A warmed-up policy, trees that it searched, and the configuration of both."""

    def __init__(self, folder: Path) -> None:
        """Warm up and search."""
        path = write_tiny_config(folder)
        self.config = load_config(path, ["prm.enabled=false"])
        self.policy = folder / "policy"
        warm_up_policy(config=self.config, solutions=folder / "warmup.jsonl", out=self.policy, stage="")
        renderer = build_renderer(self.config, str(self.policy))
        provenance = Provenance(round=1, policy_version=0, scorer_version=None, seed=0, config_hash="0" * 16, renderer_hash=renderer.hash)
        models = Models(policy=str(self.policy), prm=None, provenance=provenance)
        problems = build_problems(self.config.problems, seed=0)["train"]
        self.trees = folder / "trees.parquet"
        search_shard(config=self.config, models=models, problems=problems, out=self.trees, stage="")
        # What a PRM would have said: half of what came out.
        records = [
            replace(tree, scores=[None, *(0.25 + (value or 0.0) / 2 for value in tree.values[1:])]) for tree in read_trees(self.trees)
        ]
        write_trees(self.trees, records)
        self.later = folder / "later.parquet"
        write_trees(self.later, [replace(tree, provenance=replace(tree.provenance, round=2, policy_version=1)) for tree in records])

    def configured(self, settings: dict[str, Any]) -> Config:
        """Return the configuration with other settings."""
        rule, graded = settings.get("labels.pairs", "evidence"), settings.get("labels.graded", "steps")
        loose = {f"labels.pairs.{name}": value for name, value in LOOSE.items() if name in PAIR_RULES[rule].__dataclass_fields__}
        loose |= {"labels.graded.min_margin": 0.0} if graded == "steps" else {}
        return with_overrides(self.config, [f"{name}={value}" for name, value in {**loose, **settings}.items()])

    def label(self, config: Config, folder: Path, sources: LabelSources | None = None) -> tuple[dict[str, Path], LabelCounts]:
        """Label the trees; return the files and the counts."""
        sources = sources or LabelSources(trees=self.trees, policy=str(self.policy))
        out = {kind: folder / f"{kind}.parquet" for kind in ("traces", "pairs", "graded", "advantages", "values", "step-pairs")}
        return out, label_shard(config=config, sources=sources, out=out)

    def prefer(self, config: Config, files: dict[str, Path], out: Path) -> TrainingSummary:
        """Train the policy on the rows that its preference loss takes."""
        kind = preference_kind(config)
        assert kind is not None
        start = str(self.policy)
        return train_on_preferences(config=config, start=start, base=start, rows=[files[kind.name]], out=out, seed=0, stage="")

    @torch.no_grad()
    def margin(self, policy: Path, pairs: list[PreferencePair]) -> float:
        """Return the mean log-probability by which a policy prefers the chosen side of pairs."""
        model = AutoModelForCausalLM.from_pretrained(policy).eval()
        batch = collate_preferences(preference_rows(pairs, vocabulary=len(load_tokenizer(policy)), dropped={}))
        chosen, rejected = contrast_sums(completion_logps(model, batch), batch).chunk(2)
        return (chosen - rejected).mean().item()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The tiny task after its warm-up and one search."""
    return World(tmp_path_factory.mktemp("world"))


def preference(**settings: Any) -> dict[str, Any]:
    """Return settings of preference training with the test's schedule."""
    of_loss = ("beta", "label_smoothing")
    return {f"preference.{'loss.' if name in of_loss else ''}{name}": value for name, value in {**TRAINING, **settings}.items()}


@pytest.mark.parametrize("loss", PREFERENCE_LOSSES)
def test_every_loss_trains_in_the_loop(world: World, tmp_path: Path, loss: str) -> None:
    """A few updates on labelled trees, packed, raise the margin of the chosen steps; the summary is JSON."""
    beta = {"simpo": 2.0, "orpo": 1.0}.get(loss, 0.1)
    config = world.configured(preference(loss=loss, beta=beta))
    files, _ = world.label(config, tmp_path)
    pairs = read_pairs(files["pairs"])
    summary = world.prefer(config, files, tmp_path / "out")
    assert summary.layout == "trees"
    assert summary.rows > 10
    assert TrainingSummary.from_dict(json.loads(json.dumps(summary.to_dict())), "here") == summary
    assert world.margin(tmp_path / "out", pairs) > world.margin(world.policy, pairs) + 0.1


@pytest.mark.parametrize("rule", PAIR_RULES)
def test_every_rule_of_pairs_trains_in_the_loop(world: World, tmp_path: Path, rule: str) -> None:
    """Each rule finds pairs in the trees, all counted, and a few updates on them raise their margin."""
    config = world.configured({"labels.pairs": rule, **preference()})
    sources = LabelSources(trees=world.later, earlier=(world.trees,), policy=str(world.policy))
    files, counts = world.label(config, tmp_path, sources)
    pairs = read_pairs(files["pairs"])
    assert counts.by_kind["pairs"].kept == len(pairs) > 3
    assert all(pair.chosen_logps and pair.rejected_logps for pair in pairs)
    world.prefer(config, files, tmp_path / "out")
    assert world.margin(tmp_path / "out", pairs) > world.margin(world.policy, pairs) + 0.1


@pytest.mark.parametrize(
    "settings", [{"reference": "base"}, {"reference": "sampler"}, {"label_smoothing": "uncertainty"}, {"label_smoothing": "visits"}]
)
def test_references_and_smoothings_train_in_the_loop(world: World, tmp_path: Path, settings: dict[str, str]) -> None:
    """DPO with other references and with weights from the search raises the margin; against its own stored numbers it begins at log 2.

    By visits most of these pairs are open, so their margin rises least.
    """
    config = world.configured(preference(**settings))
    files, _ = world.label(config, tmp_path)
    summary = world.prefer(config, files, tmp_path / "out")
    assert summary.first_loss == pytest.approx(0.6931, abs=2e-3)
    pairs = read_pairs(files["pairs"])
    assert world.margin(tmp_path / "out", pairs) > world.margin(world.policy, pairs) + (0.02 if "label_smoothing" in settings else 0.1)


@pytest.mark.parametrize("rule", ADVANTAGE_RULES)
def test_every_rule_of_advantages_trains_in_the_loop(world: World, tmp_path: Path, rule: str) -> None:
    """Advantages of labelled trees, packed, raise the log-probability of what they favour; stored log-probabilities are the policy's."""
    settings = {f"gradient.{name}": value for name, value in {**TRAINING, "max_updates": 3}.items()}
    config = world.configured({"gradient.enabled": True, "labels.advantages": rule, "labels.data": "replace", **settings})
    files, counts = world.label(config, tmp_path)
    rows = ADVANTAGES.read([files["advantages"]])
    assert counts.advantages is not None and counts.advantages.kept == len(rows) > 0
    start, out = str(world.policy), tmp_path / "out"
    summary = train_on_advantages(config=config, start=start, base=start, rows=[files["advantages"]], out=out, seed=0, stage="")
    assert summary.layout == "trees" and TrainingSummary.from_dict(json.loads(json.dumps(summary.to_dict())), "") == summary
    before, after = (token_logps(path, rows) for path in (world.policy, out))
    stored = torch.tensor([logp for row in rows for logp in row.logps])
    torch.testing.assert_close(before, stored, rtol=1e-3, atol=1e-4)
    weights = torch.tensor([value for row in rows for value in row.advantages])
    assert (weights * (after - before)).sum() > 0


def token_logps(policy: Path, rows: list[AdvantageRow]) -> torch.Tensor:
    """Return the log-probability of every token of some rows under a policy."""
    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    batch = collate_gradient(gradient_rows(rows, vocabulary=model.config.vocab_size))
    with torch.no_grad():
        return completion_logps(model, batch)[batch["targets"] != IGNORE]


def test_policy_gradients_refuse_what_they_cannot_compare(world: World) -> None:
    """Rows of policies long gone, and rules that need scores where there is no PRM."""
    for settings, message in (
        (
            {"gradient.enabled": True},
            r"labels.data: policy gradients compare with the policy that sampled.* got 'accumulate' -- use 'replac",
        ),
        (
            {"gradient.enabled": True, "labels.data": "replace", "labels.advantages": "pure"},
            r"labels.advantages: 'pure' goes by the scores of steps: got prm.enabled = false -- choose another or enable the PRM",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            check_labels(world.configured(settings))


@pytest.mark.parametrize("graded", ["steps", "solutions"])
@pytest.mark.parametrize("loss", ["kto", "oreal"])
def test_graded_rows_train_in_the_loop(world: World, tmp_path: Path, loss: str, graded: str) -> None:
    """Steps and solutions alike: good ones become likelier compared with bad ones."""
    config = world.configured({"labels.graded": graded, **preference(loss=loss)})
    files, counts = world.label(config, tmp_path)
    rows = read_graded(files["graded"])
    assert counts.by_kind["graded"].kept == len(rows)
    assert {row.good for row in rows} == {True, False}
    world.prefer(config, files, tmp_path / "out")

    @torch.no_grad()
    def gap(policy: Path) -> float:
        model = AutoModelForCausalLM.from_pretrained(policy).eval()
        means = []
        for good in (True, False):
            logps = [
                model(torch.tensor([[*row.prompt_ids, *row.completion_ids]])).logits[0].log_softmax(-1)[len(row.prompt_ids) - 1 : -1]
                for row in rows
                if row.good == good
            ]
            ids = [row.completion_ids for row in rows if row.good == good]
            means.append(
                sum(table.gather(1, torch.tensor(tokens)[:, None]).sum() for table, tokens in zip(logps, ids, strict=True)) / len(ids)
            )
        return float(means[0] - means[1])

    assert gap(tmp_path / "out") > gap(world.policy) + 0.1


@pytest.mark.parametrize("of", get_args(LabelsConfig.model_fields["revision_of"].annotation))
def test_revisions_train_in_the_loop(world: World, tmp_path: Path, of: str) -> None:
    """Revision traces stand behind the other traces, say the configured sentence, and are learned."""
    config = world.configured({"labels.revisions": 2, "labels.revision_of": of, "labels.revision_text": '"no\\n"', "sft.max_updates": 6})
    files, counts = world.label(config, tmp_path)
    traces = read_traces(files["traces"])
    revisions = [trace for trace in traces if trace.completion.startswith("no\n")]
    assert len(revisions) == counts.by_kind["revisions"].kept > 3
    assert len(traces) == counts.by_kind["traces"].kept + len(revisions)
    eos = load_tokenizer(world.policy).eos_token_id
    renderer = build_renderer(config, str(world.policy))
    for trace in revisions:
        assert renderer.decode(trace.completion_ids) == trace.completion
        assert eos not in trace.prompt_ids and trace.prompt_ids[-1] != eos
    start, out = str(world.policy), tmp_path / "out"
    summary = train_on_solutions(config=config, start=start, traces=[files["traces"]], out=out, seed=0, stage="")
    assert summary.last_loss < summary.first_loss


def test_a_round_trains_only_on_what_its_loss_takes(world: World) -> None:
    """Pairs do not make a policy train that learns from graded rows, and the other way round; without preferences only traces count."""
    settings = ("preference.loss=dpo", "preference.loss=oreal", "preference.enabled=false")
    assert [preference_kind(with_overrides(world.config, [setting])) for setting in settings] == [PAIRS, GRADED, None]


def test_values_filter_traces(world: World, tmp_path: Path) -> None:
    """A threshold drops traces, and says so."""
    _, counts = world.label(world.configured({"labels.min_trace_value": 0.9}), tmp_path)
    assert counts.traces.dropped_by_reason["below value"] > 0


def test_the_policy_window_merges_earlier_rounds(world: World, tmp_path: Path) -> None:
    """With one version the later trees count alone; with two both do, and the caps are of the problem over all of them."""
    sources = LabelSources(trees=world.later, earlier=(world.trees,), policy=str(world.policy))
    number = len(read_trees(world.trees))
    found = {}
    for window in (1, 2):
        (tmp_path / str(window)).mkdir()
        config = world.configured({"labels.data": "on-policy", "labels.data.window": window, "labels.pairs.pairs_per_problem": 99})
        files, counts = world.label(config, tmp_path / str(window), sources)
        found[window] = read_pairs(files["pairs"])
        outside = {"outside the policy window": number} if window == 1 else {}
        assert counts.trees == RowCounts(kept=number * window, dropped_by_reason=outside)
        assert counts.by_kind["values"].kept == world.label(world.configured({}), tmp_path)[1].values.kept
    assert {pair.provenance.round for pair in found[1]} == {2}
    assert {pair.provenance.round for pair in found[2]} == {1, 2} and len(found[2]) == 2 * len(found[1])


def test_labelling_again_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    """The rows depend on trees and configuration alone."""
    config = world.configured({"labels.revisions": 1, "preference.loss": "kto"})
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files, _ = world.label(config, tmp_path / name)
        digests.append({kind: path.read_bytes() for kind, path in files.items() if path.exists()})
    assert {"traces", "pairs", "graded", "values"} <= digests[0].keys() and digests[0] == digests[1]


def test_trees_are_scored_by_another_model(world: World) -> None:
    """Every step gets the score of its own prefix; the root and failed steps have none."""
    (tree, *_) = read_trees(world.trees)
    tree = replace(tree, token_ids=[*tree.token_ids[:-1], []])
    (scores,) = score_trees(TableScorer(lambda prefix: len(prefix) / 100), [tree])

    def length(node: int) -> int:
        return len(tree.prompt_ids) if node == 0 else length(tree.parents[node]) + len(tree.token_ids[node])

    assert scores == [None, *(pytest.approx(length(node) / 100) for node in range(1, len(tree.parents) - 1)), None]
    assert score_trees(TableScorer(lambda prefix: 0.5), []) == []


def test_agreement_is_that_of_two_models(world: World, tmp_path: Path) -> None:
    """With an earlier PRM every pair of scored siblings knows how far both rank them alike, and the loss trains on it."""
    prm = save_tiny_scorer(tmp_path / "prm", hidden=32, layers=1)
    PRMSpec(renderer_hash=read_trees(world.trees)[0].provenance.renderer_hash).save(prm)
    config = world.configured(preference(label_smoothing="agreement"))
    sources = LabelSources(trees=world.trees, policy=str(world.policy), earlier_prm=str(prm))
    files, _ = world.label(config, tmp_path, sources)
    found = [pair.agreement for pair in read_pairs(files["pairs"])]
    assert all(agreement is not None and 0 <= agreement <= 1 for agreement in found) and len(set(found)) > 2
    summary = world.prefer(config, files, tmp_path / "out")
    assert summary.first_loss == pytest.approx(0.6931, abs=1e-3)


def test_the_earlier_model_is_the_last_other_best_one(world: World, tmp_path: Path) -> None:
    """Best PRMs of rounds 0 to 3 are none, 1, 1 and 3: round 4 searched with 3 and asks 1; rounds 2 and 3 have nobody to ask."""
    run = RunDir(root=tmp_path)
    run.prm(1).mkdir(parents=True)
    for number, best in enumerate((None, 1, 1, 3)):
        run.finish_round(replace(row(number, policy=0.5, search=0.5, majority=0.5), best_prm=best))
    config = world.configured({"preference.loss.label_smoothing": "agreement"})
    context = RoundContext(config=config, run=run, problems={}, pool=None, display=ProgressDisplay())  # type: ignore[arg-type]
    found = [earlier_prm(context, number, best) for number, best in ((1, None), (2, 1), (3, 1), (4, 3))]
    assert found == [None, None, None, str(run.prm(1))]
    assert earlier_prm(context.in_round(world.configured({})), 4, 3) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["preference.loss=kto", "preference.loss.sft_weight=1.0"], "preference.loss.type 'kto' does not take it"),
        (["preference.loss=kto", "preference.reference=sampler"], "reference 'sampler' is not for loss 'kto'"),
        (["preference.loss=simpo", "preference.reference=base"], "loss 'simpo' has no reference model"),
        (["labels.pairs=rstar"], "did you mean 'rstar-math'"),
    ],
)
def test_impossible_combinations_are_refused(world: World, settings: list[str], words: str) -> None:
    """The message names what does not fit."""
    with pytest.raises(ConfigError, match=words):
        with_overrides(world.config, settings)


def test_a_revision_must_end_a_step(world: World) -> None:
    """A sentence that does not close a step would run into the next one."""
    with pytest.raises(ConfigError, match=r"labels.revision_text: must end with format.step_end '\\n'"):
        check_labels(world.configured({"labels.revision_text": '"no"'}))
    check_labels(world.configured({"labels.revision_text": '"no\\n"'}))
