"""The contracts of policies and scorers, as checks that raise ``AssertionError``."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from stepladder.interfaces import Policy, ScoreRequest, ScoreResult, StepRequest, StepResult, StepScorer
from stepladder.types import Step, StopReason, derive_seed

ResultT = TypeVar("ResultT", StepResult, ScoreResult)


def check_policy(
    make_policy: Callable[[], Policy],
    *,
    prefix_ids: Sequence[tuple[int, ...]],
    decode: Callable[[Sequence[int]], str] | None = None,
    over_long_prefix_ids: tuple[int, ...] | None = None,
    logp_tolerance: float = 1e-4,
) -> None:
    """Raise ``AssertionError`` unless a policy fulfils the whole contract of ``interfaces.Policy``.

    A policy that has ``samples_distinct`` must draw without replacement, too.

    Args:
        make_policy: Returns a policy with nothing in flight. It is called for every check and may return the same object.
        prefix_ids: At least two different prefixes after which the policy is uncertain: two seeds must practically never give the same
            eight samples at temperature 1.
        decode: Maps ids to the text that a step with these ids must carry; None leaves the texts unchecked.
        over_long_prefix_ids: A prefix that the policy must refuse; None if it accepts any length.
        logp_tolerance: Maximum change of log-probabilities with the batch, in nats.

    """
    _require(len(set(prefix_ids)) >= 2, "check_policy: needs at least two different prefixes")
    prefixes = [tuple(prefix) for prefix in prefix_ids]
    _check_idle(make_policy())
    _check_records(make_policy(), prefixes, decode)
    _check_seeds(make_policy(), prefixes[0])
    _check_company(make_policy, prefixes, logp_tolerance)
    _check_greedy(make_policy(), prefixes)
    _check_step_tokens(make_policy(), prefixes)
    _check_sample_tokens(make_policy(), prefixes)
    _check_many_policy_requests(make_policy(), prefixes)
    policy = make_policy()
    if getattr(policy, "samples_distinct", False):
        _check_distinct(policy, prefixes[0], logp_tolerance)
    if over_long_prefix_ids is not None:
        _check_refusal(make_policy(), prefixes, tuple(over_long_prefix_ids))


def check_scorer(
    make_scorer: Callable[[], StepScorer],
    *,
    prefix_ids: Sequence[tuple[int, ...]],
    steps: Sequence[tuple[int, ...]],
    over_long_step_ids: tuple[int, ...] | None = None,
    score_tolerance: float = 1e-4,
) -> None:
    """Raise ``AssertionError`` unless a scorer fulfils the whole contract of ``interfaces.StepScorer``.

    Args:
        make_scorer: Returns a scorer with nothing in flight.
        prefix_ids: At least two different prefixes.
        steps: At least two different steps, of different lengths if lengths matter to the scorer; any may follow any prefix or step.
        over_long_step_ids: A step that the scorer cannot read after the first prefix; None if it accepts any length.
        score_tolerance: Maximum change of scores with the batch.

    """
    _require(len(set(prefix_ids)) >= 2 and len(set(steps)) >= 2, "check_scorer: needs at least two prefixes and two steps")
    prefixes, steps = [tuple(prefix) for prefix in prefix_ids], [tuple(step) for step in steps]
    _check_idle(make_scorer())
    singles = _check_score_records(make_scorer(), prefixes, steps)
    _check_siblings(make_scorer(), prefixes, steps, singles, score_tolerance)
    _check_chains(make_scorer(), prefixes[0], steps, singles, score_tolerance)
    _check_many_scores(make_scorer(), prefixes, steps, singles, score_tolerance)
    if over_long_step_ids is not None:
        _check_unscorable(make_scorer(), prefixes, steps, tuple(over_long_step_ids), singles, score_tolerance)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _check_idle(backend: Policy | StepScorer) -> None:
    _require(backend.collect() == [], "collect() must return an empty list when nothing is in flight")
    backend.submit([])
    _require(backend.collect() == [], "collect() must stay empty after an empty submit()")


def _drain_policy(policy: Policy, requests: Sequence[StepRequest]) -> dict[int, StepResult]:
    policy.submit(requests)
    return _matched(policy.collect, {request.ticket for request in requests})


def _drain_scorer(scorer: StepScorer, requests: Sequence[ScoreRequest]) -> dict[int, ScoreResult]:
    scorer.submit(requests)
    return _matched(scorer.collect, {request.ticket for request in requests})


def _matched(collect: Callable[[], list[ResultT]], tickets: set[int]) -> dict[int, ResultT]:
    results: dict[int, ResultT] = {}
    while len(results) < len(tickets):
        batch = collect()
        _require(bool(batch), f"collect() returned nothing with {len(tickets) - len(results)} requests in flight")
        for result in batch:
            _require(result.ticket in tickets, f"ticket {result.ticket} was never submitted")
            _require(result.ticket not in results, f"ticket {result.ticket} came back twice")
            results[result.ticket] = result
    _require(collect() == [], "collect() must return an empty list once everything was collected")
    return results


def _check_records(policy: Policy, prefixes: Sequence[tuple[int, ...]], decode: Callable[[Sequence[int]], str] | None) -> None:
    requests = [
        StepRequest(ticket=17 * i + 3, prefix_ids=prefix, num_samples=1 + i % 3, seed=i, max_step_tokens=24, max_steps=1 + 2 * (i % 2))
        for i, prefix in enumerate([*prefixes, *prefixes])
    ]
    results = _drain_policy(policy, requests)
    for request in requests:
        _check_samples(request, results[request.ticket], decode)


def _check_samples(request: StepRequest, result: StepResult, decode: Callable[[Sequence[int]], str] | None) -> None:
    place = f"ticket {request.ticket}"
    _require(len(result.samples) == request.num_samples, f"{place}: asked {request.num_samples} samples, got {len(result.samples)}")
    for steps in result.samples:
        _require(1 <= len(steps) <= request.max_steps, f"{place}: a sample must have 1 to {request.max_steps} steps, got {len(steps)}")
        reasons = [step.stop_reason for step in steps]
        _require(all(reason == StopReason.STEP for reason in reasons[:-1]), f"{place}: only the last step may stop otherwise: {reasons}")
        complete = reasons[-1] != StopReason.STEP or len(steps) == request.max_steps
        _require(complete, f"{place}: a sample that ends with STEP must have all {request.max_steps} steps, got {len(steps)}")
        for step in steps:
            _check_step(place, step, request.max_step_tokens, decode)


def _check_step(place: str, step: Step, max_step_tokens: int, decode: Callable[[Sequence[int]], str] | None) -> None:
    known = {StopReason.STEP, StopReason.END, StopReason.LENGTH, StopReason.ERROR}
    _require(step.stop_reason in known, f"{place}: stop reason of a step must be STEP, END, LENGTH or ERROR, got {step.stop_reason!r}")
    _require(step.stop_reason != StopReason.ERROR, f"{place}: a request that can be served failed: {step.message!r}")
    _require(0 < len(step.token_ids) <= max_step_tokens, f"{place}: a step must have 1 to {max_step_tokens} tokens: {len(step.token_ids)}")
    _require(len(step.logps) == len(step.token_ids), f"{place}: one log-probability per token, got {len(step.logps)}")
    _require(all(math.isfinite(logp) and logp <= 0 for logp in step.logps), f"{place}: log-probabilities must be finite and <= 0")
    if decode is not None:
        _require(step.text == decode(step.token_ids), f"{place}: text {step.text!r} must decode its ids: {decode(step.token_ids)!r}")


def _tokens(result: StepResult) -> list[list[tuple[int, ...]]]:
    return [[step.token_ids for step in steps] for steps in result.samples]


def _logps(result: StepResult) -> list[float]:
    return [logp for steps in result.samples for step in steps for logp in step.logps]


def _check_seeds(policy: Policy, prefix: tuple[int, ...]) -> None:
    seeds = [derive_seed("check_policy", i) for i in (0, 0, 1)]
    requests = [StepRequest(ticket=i, prefix_ids=prefix, num_samples=8, seed=seed, max_step_tokens=24) for i, seed in enumerate(seeds)]
    results = _drain_policy(policy, requests)
    _require(_tokens(results[0]) == _tokens(results[1]), "two requests with the same prefix and seed must give the same samples")
    _require(_tokens(results[0]) != _tokens(results[2]), "two seeds must give different samples")
    _require(len({str(sample) for sample in _tokens(results[0])}) > 1, "the samples of one request must use streams of their own")


def _check_company(make_policy: Callable[[], Policy], prefixes: Sequence[tuple[int, ...]], logp_tolerance: float) -> None:
    """Check that a result depends neither on other requests in flight nor on the time of its submission."""
    requests = [
        StepRequest(ticket=i, prefix_ids=prefix, num_samples=4, seed=1000 + i, max_step_tokens=24, max_steps=1 + i % 2 * 3)
        for i, prefix in enumerate(prefixes)
    ]
    together = _drain_policy(make_policy(), requests)
    for request in reversed(requests):
        alone = _drain_policy(make_policy(), [request])[request.ticket]
        beside = together[request.ticket]
        _require(_tokens(alone) == _tokens(beside), f"ticket {request.ticket}: a result must not depend on what else is in flight")
        drift = max(abs(a - b) for a, b in zip(_logps(alone), _logps(beside), strict=True))
        _require(drift <= logp_tolerance, f"ticket {request.ticket}: log-probabilities drift by {drift:.4g} with the batch")


def _check_greedy(policy: Policy, prefixes: Sequence[tuple[int, ...]]) -> None:
    requests = [
        StepRequest(ticket=i, prefix_ids=prefixes[i // 2], num_samples=1, seed=i, temperature=0.0, max_step_tokens=24) for i in range(4)
    ]
    results = _drain_policy(policy, requests)
    for i in (0, 2):
        _require(_tokens(results[i]) == _tokens(results[i + 1]), "greedy decoding must not depend on the seed")


def _check_step_tokens(policy: Policy, prefixes: Sequence[tuple[int, ...]]) -> None:
    requests = [
        StepRequest(ticket=i, prefix_ids=prefix, num_samples=2, seed=i, max_step_tokens=1, max_steps=2) for i, prefix in enumerate(prefixes)
    ]
    results = _drain_policy(policy, requests)
    for request in requests:
        _check_samples(request, results[request.ticket], None)


def _check_sample_tokens(policy: Policy, prefixes: Sequence[tuple[int, ...]]) -> None:
    """Check the cap on the tokens of a whole sample, over several steps and within one."""
    requests = [
        StepRequest(ticket=i, prefix_ids=prefix, num_samples=4, seed=i, max_step_tokens=24, max_steps=1 + i % 2 * 5, max_tokens=3)
        for i, prefix in enumerate([*prefixes, *prefixes])
    ]
    results = _drain_policy(policy, requests)
    for request in requests:
        _check_samples(request, results[request.ticket], None)
        for steps in results[request.ticket].samples:
            taken = sum(len(step.token_ids) for step in steps)
            _require(taken <= 3, f"ticket {request.ticket}: a sample must have at most max_tokens=3 tokens: got {taken}")


def _check_many_policy_requests(policy: Policy, prefixes: Sequence[tuple[int, ...]], num_requests: int = 100) -> None:
    requests = [
        StepRequest(ticket=i, prefix_ids=prefixes[i % len(prefixes)], num_samples=1, seed=i, max_step_tokens=4) for i in range(num_requests)
    ]
    policy.submit(requests[: num_requests // 2])
    first = policy.collect()
    policy.submit(requests[num_requests // 2 :])
    late = _matched(policy.collect, {request.ticket for request in requests} - {result.ticket for result in first})
    results = {**{result.ticket: result for result in first}, **late}
    for request in requests:
        _check_samples(request, results[request.ticket], None)


def _check_distinct(policy: Policy, prefix: tuple[int, ...], logp_tolerance: float) -> None:
    """Check that samples differ from each other and from excluded steps, and that nothing else changes."""

    def ask(ticket: int, num_samples: int, excluded: tuple[Step, ...] | None) -> StepRequest:
        return StepRequest(ticket=ticket, prefix_ids=prefix, num_samples=num_samples, seed=5, max_step_tokens=2, excluded=excluded)

    first = _drain_policy(policy, [ask(0, 6, ()), ask(1, 6, None)])
    steps = tuple(step for (step,) in first[0].samples)
    _check_samples(ask(0, 6, ()), first[0], None)
    _require(len({step.token_ids for step in steps}) == 6, "samples without replacement must all be different")
    _require(steps[0].token_ids == first[1].samples[0][0].token_ids, "the first sample must be the one that independent sampling gives")
    drift = max(abs(a - b) for a, b in zip(steps[0].logps, first[1].samples[0][0].logps, strict=True))
    _require(drift <= logp_tolerance, f"sampling without replacement must keep log-probabilities: they drift by {drift:.4g}")
    rest = _drain_policy(policy, [ask(0, 6, ()), ask(1, 4, steps[:2])])
    _require(_tokens(rest[0]) == _tokens(first[0]), "samples without replacement must follow from the seed")
    others = {step.token_ids for (step,) in rest[1].samples}
    _require(len(others) == 4 and others.isdisjoint(step.token_ids for step in steps[:2]), "excluded steps must not be sampled again")


def _check_refusal(policy: Policy, prefixes: Sequence[tuple[int, ...]], over_long: tuple[int, ...]) -> None:
    requests = [
        StepRequest(ticket=i, prefix_ids=prefix, num_samples=2, seed=i, max_step_tokens=4)
        for i, prefix in enumerate([prefixes[0], over_long, prefixes[1]])
    ]
    results = _drain_policy(policy, requests)
    _require(len(results[1].samples) == 2, "a refused request must still have one entry per sample")
    for steps in results[1].samples:
        refused = len(steps) == 1 and steps[0].stop_reason == StopReason.ERROR and not steps[0].token_ids and bool(steps[0].message)
        _require(refused, f"an over-long prefix must come back as one empty ERROR step with a message: got {steps!r}")
    for i in (0, 2):
        _check_samples(requests[i], results[i], None)


_Scores = dict[tuple[tuple[int, ...], tuple[int, ...]], float | None]


def _check_score_records(scorer: StepScorer, prefixes: Sequence[tuple[int, ...]], steps: Sequence[tuple[int, ...]]) -> _Scores:
    """Score every step after every prefix in a separate request, and return the scores."""
    pairs = [(prefix, step) for prefix in prefixes for step in steps]
    requests = [ScoreRequest(ticket=7 * i + 1, prefix_ids=prefix, branches=((step,),)) for i, (prefix, step) in enumerate(pairs)]
    results = _drain_scorer(scorer, requests)
    scores = {pair: _shaped(request, results[request.ticket])[0][0] for pair, request in zip(pairs, requests, strict=True)}
    _require(any(score is not None for score in scores.values()), "the scorer must be able to score some of the steps")
    return scores


def _shaped(request: ScoreRequest, result: ScoreResult) -> tuple[tuple[float | None, ...], ...]:
    place = f"ticket {request.ticket}"
    got, expected = [len(scores) for scores in result.scores], [len(branch) for branch in request.branches]
    _require(got == expected, f"{place}: one score per branch and step: expected {expected}, got {got}")
    for score in (score for scores in result.scores for score in scores if score is not None):
        _require(0.0 <= score <= 1.0, f"{place}: a score must be in [0, 1], got {score!r}")
    return result.scores


def _same(got: float | None, expected: float | None, tolerance: float, rule: str) -> None:
    both = got is None and expected is None
    close = got is not None and expected is not None and abs(got - expected) <= tolerance
    _require(both or close, f"{rule}: got {got!r}, expected {expected!r}")


def _check_siblings(
    scorer: StepScorer, prefixes: Sequence[tuple[int, ...]], steps: Sequence[tuple[int, ...]], singles: _Scores, tolerance: float
) -> None:
    requests = [ScoreRequest(ticket=i, prefix_ids=prefix, branches=tuple((step,) for step in steps)) for i, prefix in enumerate(prefixes)]
    results = _drain_scorer(scorer, requests)
    for request in requests:
        for (step,), (score,) in zip(request.branches, _shaped(request, results[request.ticket]), strict=True):
            _same(score, singles[request.prefix_ids, step], tolerance, "a score must not depend on the step's siblings")


def _check_chains(
    scorer: StepScorer, prefix: tuple[int, ...], steps: Sequence[tuple[int, ...]], singles: _Scores, tolerance: float
) -> None:
    """Check that a branch of two steps has the same scores as its steps with the first one in the prefix."""
    first, second = steps[0], steps[1]
    chain = ScoreRequest(ticket=1, prefix_ids=prefix, branches=((first, second), (second,)))
    tail = ScoreRequest(ticket=2, prefix_ids=prefix + first, branches=((second,),))
    results = _drain_scorer(scorer, [chain, tail])
    scores = _shaped(chain, results[1])
    _same(scores[0][0], singles[prefix, first], tolerance, "a score must not depend on later steps")
    _same(scores[0][1], _shaped(tail, results[2])[0][0], tolerance, "a score must not depend on where the prefix ends")
    _same(scores[1][0], singles[prefix, second], tolerance, "a score must not depend on a longer sibling")


def _check_many_scores(
    scorer: StepScorer, prefixes: Sequence[tuple[int, ...]], steps: Sequence[tuple[int, ...]], singles: _Scores, tolerance: float
) -> None:
    requests = [ScoreRequest(ticket=i, prefix_ids=prefixes[i % len(prefixes)], branches=((steps[i % len(steps)],),)) for i in range(100)]
    results = _drain_scorer(scorer, requests)
    for i, request in enumerate(requests):
        expected = singles[request.prefix_ids, steps[i % len(steps)]]
        _same(_shaped(request, results[i])[0][0], expected, tolerance, "a score must not depend on the batch")


def _check_unscorable(
    scorer: StepScorer,
    prefixes: Sequence[tuple[int, ...]],
    steps: Sequence[tuple[int, ...]],
    over_long: tuple[int, ...],
    singles: _Scores,
    tolerance: float,
) -> None:
    requests = [
        ScoreRequest(ticket=i, prefix_ids=prefixes[0], branches=((step,),)) for i, step in enumerate([steps[0], over_long, steps[1]])
    ]
    results = _drain_scorer(scorer, requests)
    _require(_shaped(requests[1], results[1]) == ((None,),), "a step that cannot be scored must come back as None")
    for i, step in ((0, steps[0]), (2, steps[1])):
        _same(_shaped(requests[i], results[i])[0][0], singles[prefixes[0], step], tolerance, "a bad request must not disturb the others")
