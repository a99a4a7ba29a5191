"""Reports of ``solve`` about its searches: a row for a file, lines for people, and the most likely reason for a missing answer."""

from collections import Counter
from collections.abc import Sequence
from enum import Enum
from typing import Any

from stepladder.loops.runs.token_use import TokenUse, unique_share
from stepladder.terminal import one_line
from stepladder.tree_paths import action_of, observation_text, path_to
from stepladder.types import Budget, Failures, SearchResult, StopReason, TreeRecord

Row = dict[str, Any]


class Detail(Enum):
    """How much is printed about a search."""

    QUIET = "quiet"
    """The answer alone."""
    NORMAL = "normal"
    """Its share of the votes, its steps, and what was spent."""
    VERBOSE = "verbose"
    """Also how well the models' caches did."""


def answer_row(result: SearchResult, question: str, *, discriminator_tokens: int | None) -> Row:
    """Return the row of a question for a file or for ``--json``.

    Args:
        result: The result of the search.
        question: The question, verbatim.
        discriminator_tokens: Tokens that a second model generated to review the answer; None without one.
    """
    tree = result.tree
    steps = [_step(tree, node) for node in path_to(tree, result.answer_node or 0)]
    return {
        "id": result.problem_id,
        "question": question,
        "answer": result.answer,
        "steps": steps,
        "votes": result.votes,
        "confidence": result.confidence,
        "method": tree.method,
        "generated_tokens": tree.generated_tokens,
        **({} if discriminator_tokens is None else {"discriminator_tokens": discriminator_tokens}),
        "policy_calls": tree.policy_calls,
        "simulations": tree.num_simulations,
        "stop_reason": str(result.stop_reason),
        "samples": result.failures.num_samples,
        "failed_samples": result.failures.num_failed,
        "error": result.failures.first_message,
    }


def _step(tree: TreeRecord, node: int) -> Row:
    observed = observation_text(tree, node)
    row = {"text": tree.texts[node], "score": tree.scores[node], "value": tree.values[node], "visits": tree.visits[node]}
    action = action_of(tree, node)
    return row | ({"observation": observed} if observed else {}) | ({"action": action} if action else {})


def has_failed(row: Row) -> bool:
    """Say whether a question has no answer and failed samples. It then counts as not asked, and is asked again."""
    return row["answer"] is None and row["failed_samples"] > 0


def readable(
    row: Row,
    result: SearchResult,
    budget: Budget,
    *,
    seconds: float,
    use: TokenUse | None = None,
    detail: Detail = Detail.NORMAL,
    ended: str | None = None,
) -> str:
    """Return an answer for people, with its votes, its steps and the costs of the search.

    Args:
        row: The row of the answer.
        result: The result of the search.
        budget: Its caps.
        seconds: Its time.
        use: Tokens that the backends forwarded; None if they are not known for this question alone.
        detail: How much to say; ``QUIET`` is the answer alone, empty without one.
        ended: Why the search ended; None has ``ended_by`` say it.
    """
    if detail is Detail.QUIET:
        return "" if row["answer"] is None else one_line(row["answer"])
    answer = f"none found -- {why_no_answer(result)}" if row["answer"] is None else one_line(row["answer"])
    lines = [f"answer: {answer}", *filter(None, [votes_sentence(result)]), *_step_lines(row["steps"]), ""]
    simulations = f"{row['simulations']:,} simulation{'' if row['simulations'] == 1 else 's'}"
    tokens = f"{row['generated_tokens']:,} tokens, {simulations}, {seconds:.2f} s of search"
    lines.append(f"{row['method']}: {tokens}; {ended or ended_by(result, budget)}")
    if result.failures.num_failed:
        lines.append(result.failures.sentence())
    return "\n".join([*lines, *(_details(result, use) if detail is Detail.VERBOSE else [])])


def votes_sentence(result: SearchResult) -> str | None:
    """Return a clause on the answer's share of the votes and the runner-up; None without votes."""
    if result.answer is None or result.confidence is None:
        return None
    total, own = sum(result.votes.values()), result.votes.get(result.answer, 0.0)
    parts = [f"confidence: {result.confidence:.0%} of the votes ({own:.4g} of {total:.4g})"]
    others = [(answer, weight) for answer, weight in result.votes.items() if answer != result.answer]
    if not others:
        return f"{parts[0]}, no other answer"
    second, weight = max(others, key=lambda pair: pair[1])
    parts.append(f"runner-up {one_line(second)} with {weight / total:.0%}")
    if len(others) > 1:
        parts.append(f"{len(others) - 1} more answer{'s' if len(others) > 2 else ''}")
    return ", ".join(parts)


def _step_lines(steps: Sequence[Row]) -> list[str]:
    if not steps:
        return []
    lines = ["", "step  score  text"]
    for number, step in enumerate(steps, start=1):
        score = "    -" if step["score"] is None else f"{step['score']:.3f}"
        kind = f"[{step['action']}] " if "action" in step else ""
        lines.append(f"{number:>4}  {score}  {kind}{_indented(step['text'])}")
        if observed := step.get("observation", "").strip():
            lines.append(f"{'':6}given  {_indented(observed)}")
    return lines


def _details(result: SearchResult, use: TokenUse | None) -> list[str]:
    share = unique_share([result.tree])
    unique = [] if share is None else [f"{share:.0%} of the tokens are in the tree once"]
    said = ", ".join([f"{len(result.tree.parents):,} nodes", *unique])
    return [said, *filter(None, [None if use is None else use.sentence()])]


def _indented(text: str) -> str:
    return text.strip().replace("\n", f"\n{'':13}")


def file_summary(rows: Sequence[Row], failures: Failures, name: str, *, seconds: float) -> str:
    """Return a summary of the questions of a file, for people.

    Args:
        rows: All rows of the file.
        failures: Failed samples of the policy in this call.
        name: What the rows are called, such as their file.
        seconds: Time of this call's searches.
    """
    answered, failed = sum(row["answer"] is not None for row in rows), sum(map(has_failed, rows))
    counts = f"{len(rows)} question{'' if len(rows) == 1 else 's'}, {answered} answered" + (f", {failed} failed" if failed else "")
    known = [row["confidence"] for row in rows if row.get("confidence") is not None]
    sure = f", confidence {sum(known) / len(known):.0%} on average" if known else ""
    lines = [f"{name}: {counts}{sure}, {sum(row['generated_tokens'] for row in rows):,} tokens, {seconds:.1f} s of search"]
    if failures.num_failed:
        lines.append(failures.sentence() + (" -- repeat the command to ask the failed questions again" if failed else ""))
    return "\n".join(lines)


def ended_by(result: SearchResult, budget: Budget) -> str:
    """Return a clause with the reason for the end of a search."""
    clauses = {
        StopReason.TOKENS: f"ended by the cap of {budget.max_tokens} tokens",
        StopReason.SIMULATIONS: f"ended by the cap of {budget.num_simulations} simulation{'' if budget.num_simulations == 1 else 's'}",
        StopReason.SECONDS: f"ended by the cap of {budget.max_seconds} seconds",
        StopReason.CALLS: f"ended by the cap of {budget.max_calls} calls",
        StopReason.EXHAUSTED: "ended because nothing was left to expand",
        StopReason.VALUE: "ended because a solution scored as much as the method asks for",
        StopReason.GOAL: "ended because no open branch is worth more than the best solution",
        StopReason.CONVERGED: "ended because the answer stayed the same",
    }
    return clauses[result.stop_reason]


def why_no_answer(result: SearchResult) -> str:
    """Return the most likely reason for a search without an answer, with a remedy."""
    inner, reasons = set(result.tree.parents), result.tree.stop_reasons
    leaves = Counter(reason for node, reason in enumerate(reasons) if node and node not in inner)
    ended = leaves[StopReason.END]
    if ended:
        return f"{ended} of {leaves.total()} branches ended without a readable answer: see format.answer_pattern, or try another --method"
    if result.failures.all_failed:
        return "no sample was given"
    caps = {StopReason.TOKENS: "--tokens", StopReason.SECONDS: "--seconds", StopReason.SIMULATIONS: "--simulations"}
    # A cap on tokens cuts the samples that do not fit.
    if (leaves[StopReason.STEP] or result.stop_reason == StopReason.TOKENS) and result.stop_reason in caps:
        return f"no branch came to its end: raise {caps[result.stop_reason]}, or try another --method"
    kind = max((StopReason.LENGTH, StopReason.DEPTH, StopReason.TOOL, StopReason.ERROR), key=leaves.__getitem__)
    causes = {
        StopReason.LENGTH: "were cut: raise search.max_step_tokens, or take a model with a longer context",
        StopReason.DEPTH: "came to the limit of steps: raise search.max_depth",
        StopReason.TOOL: "ended with errors of the tool: see search.max_tool_errors, and the steps with --tree",
        StopReason.ERROR: "failed: mend what the first of them says",
    }
    if leaves[kind]:
        return f"{leaves[kind]} of {leaves.total()} branches {causes[kind]}"
    return "no branch came to its end: raise --simulations or --tokens, or try another --method"
