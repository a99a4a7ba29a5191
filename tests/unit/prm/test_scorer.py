import numpy as np
import pytest
import torch

from stepladder.errors import BackendError, CheckpointError, ConfigError
from stepladder.interfaces import ScoreRequest, collect_all
from stepladder.prm.outputs import transform_outputs
from stepladder.prm.scorer import TransformersStepScorer
from stepladder.prm.specs import SPEC_FILE, PRMSpec
from stepladder.testing import check_scorer
from tests.models import save_tiny_scorer, tiny_policy, tiny_scorer
from tests.prms import load_step_scorer

SPEC = PRMSpec(renderer_hash="0" * 16)
PREFIXES = [(5, 6, 7), (8,), (5, 6, 9, 10)]
STEPS = [(11, 12), (13,), (14, 15, 16, 17), (11, 20)]


def _scores(scorer, requests):
    return [result.scores for result in collect_all(scorer, requests)]


def _plain(model, ids):
    with torch.no_grad():
        return torch.sigmoid(model(torch.tensor([ids])).logits[0, -1, 0].double()).item()


@pytest.mark.parametrize("arch", ["qwen2", "llama"])
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_the_scorer_keeps_the_contract(arch, kv_heads):
    """The shipped contract suite passes for both families, with and without grouped queries."""
    model, _ = tiny_scorer(arch=arch, kv_heads=kv_heads, max_positions=64)
    check_scorer(lambda: TransformersStepScorer(model, SPEC), prefix_ids=PREFIXES, steps=STEPS, over_long_step_ids=(5,) * 62)


@pytest.mark.parametrize("cache_tokens", [None, 8])
def test_scores_equal_a_plain_forward_read_at_each_step_end(cache_tokens):
    """Branches of several steps, siblings with equal beginnings, and requests that continue others, with a large or a full cache."""
    model, _ = tiny_scorer()
    scorer = TransformersStepScorer(model, SPEC, cache_tokens=cache_tokens, max_batch_tokens=8)
    branches = ((STEPS[0], STEPS[1], STEPS[2]), (STEPS[0], STEPS[3]), (STEPS[1],))
    requests = [
        ScoreRequest(ticket=i, prefix_ids=prefix, branches=branches) for i, prefix in enumerate([*PREFIXES, PREFIXES[0] + STEPS[0]])
    ]
    for request, scores in zip(requests, _scores(scorer, requests), strict=True):
        for branch, got in zip(branches, scores, strict=True):
            ends = [request.prefix_ids + sum(branch[: i + 1], ()) for i in range(len(branch))]
            np.testing.assert_allclose(got, [_plain(model, ids) for ids in ends], atol=1e-5)


def test_growing_a_tree_forwards_each_token_once():
    """Scoring four siblings of three tokens behind a prefix of ten, then two children of one of them, costs 10 + 4 * 3 + 2 * 3 tokens."""
    model, _ = tiny_scorer()
    scorer = TransformersStepScorer(model, SPEC)
    prefix = tuple(range(5, 15))
    siblings = tuple(((20 + i, 30, 31),) for i in range(4))
    _scores(scorer, [ScoreRequest(ticket=0, prefix_ids=prefix, branches=siblings)])
    assert scorer.forwarded_tokens == 10 + 12
    children = (((40, 41, 42),), ((43, 44, 45),))
    first = _scores(scorer, [ScoreRequest(ticket=1, prefix_ids=prefix + siblings[2][0], branches=children)])
    assert scorer.forwarded_tokens == 10 + 12 + 6
    assert _scores(scorer, [ScoreRequest(ticket=2, prefix_ids=prefix + siblings[2][0], branches=children)]) == first
    assert scorer.forwarded_tokens == 10 + 12 + 6
    scorer.reset()
    np.testing.assert_allclose(
        _scores(scorer, [ScoreRequest(ticket=3, prefix_ids=prefix + siblings[2][0], branches=children)]), first, atol=1e-6
    )
    assert scorer.forwarded_tokens == 28 + 13 + 6


def test_what_cannot_be_scored_is_none_and_disturbs_nothing_else():
    """Empty steps, unknown ids, steps beyond the context and everything behind those are None."""
    model, _ = tiny_scorer(max_positions=8)
    scorer = TransformersStepScorer(model, SPEC)
    branches = (((), (11,)), ((11,), (10**6,), (12,)), ((11, 12), (13, 14, 15), (16,)), ((11,),), ())
    request = ScoreRequest(ticket=0, prefix_ids=(5, 6, 7), branches=branches)
    others = [
        ScoreRequest(ticket=1, prefix_ids=(5,) * 9, branches=(((11,),),)),
        ScoreRequest(ticket=2, prefix_ids=(-1,), branches=(((11,),),)),
        ScoreRequest(ticket=3, prefix_ids=(5,), branches=()),
    ]
    scores, *rest = _scores(scorer, [request, *others])
    one, two, five = (_plain(model, (5, 6, 7, *ids)) for ids in ((11,), (11, 12), (11, 12, 13, 14, 15)))
    expected = [(None, one), (one, None, None), (two, five, None), (one,), ()]
    for got, want in zip(scores, expected, strict=True):
        assert got == tuple(None if value is None else pytest.approx(value, abs=1e-5) for value in want)
    assert rest == [((None,),), ((None,),), ()]


def test_outputs_that_are_not_numbers_are_not_scores():
    """A broken head gives None, not NaN."""
    model, _ = tiny_scorer()
    with torch.no_grad():
        model.score.bias.fill_(torch.nan)
    request = ScoreRequest(ticket=0, prefix_ids=(5,), branches=(((6,),),))
    assert _scores(TransformersStepScorer(model, SPEC), [request]) == [((None,),)]


def test_transforms_match_their_formulas():
    """sigmoid(ln 3) = 3/4; (tanh(ln 2) + 1) / 2 = (3/5 + 1) / 2; identity clips; nothing overflows, small scores keep digits."""
    assert transform_outputs(np.array([-40.0]), "sigmoid")[0] == pytest.approx(np.exp(-40), rel=1e-12)
    assert transform_outputs(np.array([-20.0]), "tanh01")[0] == pytest.approx(np.exp(-40), rel=1e-12)
    outputs = np.array([np.log(3), -1000.0, 1000.0], dtype=np.float64)
    np.testing.assert_allclose(transform_outputs(outputs, "sigmoid"), [0.75, 0, 1], atol=1e-12)
    np.testing.assert_allclose(transform_outputs(np.array([np.log(2), 0.0]), "tanh01"), [0.8, 0.5])
    np.testing.assert_allclose(transform_outputs(np.array([-0.5, 0.25, 7.0]), "identity"), [0, 0.25, 1])


def test_specs_and_models_load_together_and_mistakes_are_named(tmp_path):
    """A directory with model and spec scores like the objects; a missing, broken or impossible part is one sentence."""
    save_tiny_scorer(tmp_path)
    with pytest.raises(CheckpointError, match=SPEC_FILE):
        load_step_scorer(tmp_path)
    spec = PRMSpec(renderer_hash="ab" * 8, transform="tanh01")
    spec.save(tmp_path)
    assert PRMSpec.load(tmp_path) == spec
    request = ScoreRequest(ticket=0, prefix_ids=(5, 6), branches=(((7, 8),),))
    loaded = load_step_scorer(tmp_path)
    assert _scores(loaded, [request]) == _scores(TransformersStepScorer(tiny_scorer()[0], spec), [request])
    (tmp_path / SPEC_FILE).write_text('{"schema_version": 4}')
    with pytest.raises(CheckpointError, match="version 1 to 5"):
        PRMSpec.load(tmp_path)
    (tmp_path / SPEC_FILE).write_text("[]")
    with pytest.raises(CheckpointError, match="JSON object"):
        PRMSpec.load(tmp_path)
    with pytest.raises(ConfigError, match="transform"):
        PRMSpec(renderer_hash="", transform="exp")  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="outputs per token: got 2"):
        TransformersStepScorer(tiny_policy()[0], SPEC)
