"""The picture of a run that ``stepladder watch`` draws: its place, its stages, its rounds, and a tree that grows."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from stepladder.loops.runs.live import Live, LiveNode, LiveTree
from stepladder.loops.runs.progress import clock, rough, stage_figures, stage_table
from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.seen_run import SeenRun
from stepladder.report.figures import POLICY, SEARCH, accuracy, decimals, duration, percent, policy_decision, prm_decision
from stepladder.terminal import one_line, plain

_OTHER_LINES = 16
"""Lines of the picture that are not rounds, bars or nodes."""
_LEAST_NODES = 4
_FEW_ROUNDS = 8


def line(live: Live) -> str:
    """Return what a run is doing in one line."""
    part = next((each for each in reversed(live.parts) if each.seconds > 0), None)
    doing = "" if part is None else f": {plain(part.name)} {stage_figures(part)}"
    return f"{_place(live)}{doing}{_left(live)}"


def view(seen: SeenRun, *, width: int, height: int | None = None) -> RenderableType:
    """Return the picture of a run.

    Args:
        seen: The run.
        width: Columns of the terminal.
        height: Its lines; the tree is cut to fit. None has no limit.
    """
    parts: list[RenderableType] = [_title(seen)]
    if seen.live is not None and len(seen.rows) <= seen.live.rounds:
        parts += _doing(seen.live)
    elif seen.is_running and seen.times.open_stage is not None:
        number, stage, _ = seen.times.open_stage
        parts.append(Text(f"{'warm-up' if number == 0 else f'round {number}'}, {plain(stage)}", style="bold"))
    else:
        worked = sum(sum(stages.values()) for stages in seen.times.seconds.values())
        parts.append(Text(f"{duration(worked)} of work", style="dim"))
    parts += _rounds(seen.rows, width)
    if seen.live is not None and seen.live.tree is not None and seen.is_running:
        lines = None if height is None else height - _OTHER_LINES - min(len(seen.rows), _FEW_ROUNDS) - len(seen.live.parts)
        parts += _tree(seen.live.tree, width, lines)
    return Group(*parts)


def _title(seen: SeenRun) -> Text:
    style = "green" if seen.is_running else "bold" if seen.is_finished else "yellow"
    return Text.assemble((plain(seen.name), "bold"), ": ", (seen.state(), style))


def _place(live: Live) -> str:
    where = "warm-up" if live.round == 0 else f"round {live.round} of {live.rounds}"
    return f"{where}, stage {live.stage_number} of {live.num_stages}, {plain(live.stage)}"


def _left(live: Live) -> str:
    left = "" if live.seconds_left is None else f", about {rough(live.seconds_left)} left"
    return f" (whole run {clock(live.time - live.began)}{left})"


def _doing(live: Live) -> list[RenderableType]:
    said = [Text(plain(live.purpose), style="dim")] if live.purpose else []
    bars = [stage_table(live.parts)] if live.parts else []
    return [Text(_place(live), style="bold"), *said, *bars, Text(_left(live).strip(" ()"), style="dim")]


def _rounds(rows: Sequence[RoundRow], width: int) -> list[RenderableType]:
    if not rows:
        return []
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("round", "pass@1 %", "search %", "PRM AUC", "solved in search", "time", "gate"):
        table.add_column(name, justify="left" if name == "gate" else "right", no_wrap=True)
    for row in rows[-_FEW_ROUNDS:]:
        values = [None if (found := accuracy(row, method)) is None else found.value for method in (POLICY, SEARCH)]
        solved = "" if row.search is None else f"{row.search.solved:,} of {row.search.problems:,}"
        accepted = Text("accepted", style="green") if row.accepted else Text("not accepted", style="red")
        table.add_row(
            str(row.round),
            *map(percent, values),
            decimals(row.test.pool.prm_within_problem_auc),
            solved,
            duration(row.seconds),
            accepted,
        )
    said = [policy_decision(rows[-1]), prm_decision(rows[-1])]
    lines = [Text(_cut(f"round {rows[-1].round}: {one_line(each)}", width), style="dim") for each in said if each is not None]
    return [Text(""), table, *lines]


def _tree(tree: LiveTree, width: int, lines: int | None) -> list[RenderableType]:
    """Draw a tree: the most promising path, and the most visited nodes beside it that fit."""
    most = len(tree.nodes) if lines is None else max(lines, _LEAST_NODES)
    kept = _kept(tree.nodes, most)
    head = f"tree of {one_line(tree.problem_id)}: {tree.simulations:,} simulations, {tree.num_nodes:,} nodes; the best path is bold"
    root = Tree(_cut(one_line(tree.question), width - 2), guide_style="dim")
    branches = {0: root}
    for index, node in enumerate(tree.nodes):
        if index and index in kept:
            branches[index] = branches[node.parent].add(_node(node, width - 4 * _depth(tree.nodes, index)))
    return [Text(""), Text(_cut(head, width), style="dim"), root]


def _kept(nodes: Sequence[LiveNode], most: int) -> set[int]:
    """Return the best path, and then the most visited nodes whose parents are kept."""
    kept = {index for index, node in enumerate(nodes) if node.is_best or index == 0}
    for index in sorted(range(len(nodes)), key=lambda index: (-nodes[index].visits, index)):
        if len(kept) >= most:
            break
        if nodes[index].parent in kept:
            kept.add(index)
    return kept


def _depth(nodes: Sequence[LiveNode], index: int) -> int:
    depth = 0
    while nodes[index].parent >= 0:
        index, depth = nodes[index].parent, depth + 1
    return depth


def _node(node: LiveNode, width: int) -> Text:
    figures = [f"{name} {value:.2f}" for name, value in (("score", node.score), ("value", node.value)) if value is not None]
    said = "  ".join([*figures, f"{node.visits} visits", *([] if node.end is None else [one_line(node.end)])])
    text = _cut(one_line(node.text) or "(empty)", max(width - len(said) - 3, 12))
    return Text.assemble((text, "bold" if node.is_best else ""), "  ", (said, "cyan" if node.is_best else "dim"))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(width - 3, 1)]}..."
