"""Data cards: facts for readers of an exported data set, made from its rows, their search trees and the run's settings."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa

from stepladder.data.exports.figures import Distinct, Spread
from stepladder.data.exports.formats import ExportFormat
from stepladder.data.exports.rows import ExportSource
from stepladder.data.exports.shards import OpenShard
from stepladder.data.labels.advantages import AdvantageForm
from stepladder.data.labels.values import gather_evidence
from stepladder.data.store import PROVENANCE_COLUMNS
from stepladder.types import StopReason, TreeRecord

CARD_MARK = "<!-- made by stepladder export -->"
"""Mark in every data card. Only a data set with this mark is ever replaced."""
EXPORT_VERSION = 1
"""Version of the exported columns. An import refuses other versions."""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))


@dataclass(kw_only=True, slots=True)
class ExportSummary:
    """Summary of an export, gathered row by row."""

    rows: dict[str, int] = field(default_factory=dict)
    """Rows of every split."""
    problems: dict[str, Distinct] = field(default_factory=dict)
    """Problems of every split; none is in two."""
    provenance: dict[str, set[Any]] = field(default_factory=lambda: {name: set() for name in PROVENANCE_COLUMNS})
    """Values of every provenance column."""
    measures: dict[str, Spread] = field(default_factory=dict)
    """Figures of the rows, by name."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Counts of rows that the export left out, by reason."""

    @property
    def num_rows(self) -> int:
        """Rows in all splits."""
        return sum(self.rows.values())

    def add(self, split: str, rows: pa.Table, chosen: ExportFormat) -> int:
        """Count the rows of a split and return their number of tokens."""
        self.rows[split] = self.rows.get(split, 0) + rows.num_rows
        self.problems.setdefault(split, Distinct()).add(rows["problem_id"].unique().to_pylist())
        for name, values in self.provenance.items():
            values.update(rows[name].unique().to_pylist())
        num_tokens = 0
        for name, measure in chosen.measures.items():
            known = np.array([value for value in measure(rows) if value is not None], dtype=np.float64)
            self.measures.setdefault(name, Spread()).add(known)
            num_tokens += int(known.sum()) if name.endswith("tokens") else 0
        return num_tokens


@dataclass(kw_only=True, slots=True)
class Exploration:
    """How widely the trees were searched, as sums over trees."""

    trees: int = 0
    """Trees."""
    solved: int = 0
    """Trees with a right leaf."""
    nodes: int = 0
    """Nodes, roots included."""
    expanded: int = 0
    """Nodes with children."""
    leaves: int = 0
    """Nodes without children, except roots."""
    leaf_depths: int = 0
    """Steps from the root to the leaves."""
    deepest: int = 0
    """Largest depth."""
    terminals: int = 0
    """Leaves that ended by themselves."""
    truncated: int = 0
    """Leaves that a limit cut."""
    failed: int = 0
    """Leaves at which the policy failed."""
    right: int = 0
    """Leaves graded right."""
    graded: int = 0
    """Graded leaves."""
    distinct_answers: int = 0
    """Different final answers, tree by tree."""
    kept_tokens: int = 0
    """Tokens of the nodes."""
    generated_tokens: int = 0
    """Tokens sampled."""

    def add(self, shard: OpenShard) -> None:
        """Add the trees of a shard.

        Raises:
            DataFormatError: If an outcome is not in [0, 1].
        """
        if not len(shard):
            return
        lists = shard.column("parents")
        sizes, parents = lists.value_lengths().to_numpy(), lists.flatten().to_numpy()
        starts = np.cumsum(sizes) - sizes
        is_inner, is_root = (np.zeros(len(parents), dtype=bool) for _ in range(2))
        is_root[starts] = True
        is_inner[(np.repeat(starts, sizes) + parents)[~is_root]] = True
        is_leaf, depths = ~is_inner & ~is_root, shard.column("depths").flatten().to_numpy()
        outcomes = _outcomes(shard)
        right = outcomes == 1.0
        reasons = shard.column("stop_reasons").flatten().filter(pa.array(is_leaf)).value_counts().to_pylist()
        ends = Counter({each["values"]: each["counts"] for each in reasons})
        self.trees += len(shard)
        self.solved += int(np.logical_or.reduceat(right, starts).sum())
        self.nodes += len(parents)
        self.expanded += int(is_inner.sum())
        self.leaves += int(is_leaf.sum())
        self.leaf_depths += int(depths[is_leaf].sum())
        self.deepest = max(self.deepest, int(depths.max()))
        self.terminals += ends[StopReason.END]
        self.truncated += ends[StopReason.LENGTH] + ends[StopReason.DEPTH] + ends[StopReason.TOOL]
        self.failed += ends[StopReason.ERROR]
        self.right += int(right.sum())
        self.graded += int((~np.isnan(outcomes)).sum())
        self.distinct_answers += _distinct_answers(shard, np.repeat(np.arange(len(shard)), sizes))
        self.kept_tokens += shard.count_values("token_ids")
        self.generated_tokens += int(shard.column("generated_tokens").to_numpy().sum())

    def table(self) -> dict[str, str]:
        """Return the figures as text, by name."""
        return {
            "searched trees": f"{self.trees}",
            "trees with a right solution": _share(self.solved, self.trees),
            "nodes per tree": _ratio(self.nodes, self.trees),
            "children per expanded node": _ratio(self.nodes - self.trees, self.expanded),
            "depth of leaves, mean": _ratio(self.leaf_depths, self.leaves),
            "depth of leaves, largest": f"{self.deepest}",
            "leaves that ended by themselves": _share(self.terminals, self.leaves),
            "leaves that a limit cut": _share(self.truncated, self.leaves),
            "leaves at which the policy failed": _share(self.failed, self.leaves),
            "leaves that were not expanded": _share(self.leaves - self.terminals - self.truncated - self.failed, self.leaves),
            "graded leaves that are right": _share(self.right, self.graded),
            "different answers per tree": _ratio(self.distinct_answers, self.trees),
            "sampled tokens that no node holds (duplicates, rollouts)": _share(
                self.generated_tokens - self.kept_tokens, self.generated_tokens
            ),
        }


def _outcomes(shard: OpenShard) -> np.ndarray:
    """Return the outcome of every node of all trees, [N]; NaN without one."""
    stored = shard.column("outcomes").flatten()
    outcomes = stored.to_numpy(zero_copy_only=False).astype(np.float64)
    if (~((outcomes >= 0) & (outcomes <= 1))).sum() != stored.null_count:
        for record in shard.records():
            # This says which one is impossible.
            gather_evidence(cast("TreeRecord", record))
    return outcomes


def _distinct_answers(shard: OpenShard, trees: np.ndarray) -> int:
    """Return the number of different answers, tree by tree.

    Args:
        shard: The trees.
        trees: Tree of every node, [N].
    """
    codes = shard.column("answers").flatten().dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    given = codes >= 0
    return len(np.unique(trees[given] * (int(codes.max()) + 1) + codes[given]))


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """Facts about the run."""

    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings and models worth stating, by name."""
    selected: Mapping[str, Any] | None = None
    """Rows that labelling kept (``kept``) and dropped (``dropped_by_reason``) in the exported rounds; None if no labels are needed."""
    licence: str | None = None
    """SPDX identifier of the licence of the source problems; None if nobody stated one."""
    problems: str | None = None
    """Source of the problems."""


def data_card(
    name: str, chosen: ExportFormat, summary: ExportSummary, exploration: Exploration, facts: CardFacts, source: ExportSource
) -> str:
    """Return the text of README.md, including the metadata that the hub and ``datasets.load_dataset`` read."""
    parts = [
        "---",
        _front_matter(name, chosen, summary, facts),
        "---",
        CARD_MARK,
        "",
        f"# {chosen.title}",
        "",
        chosen.about,
        "",
        f"Format `{name}` of `stepladder export`: {summary.num_rows} rows from {sum(map(len, summary.problems.values()))} problems.",
        "",
        *_splits(summary),
        *_section("Columns", "column", "meaning", _columns(chosen, source)),
        *_section("Provenance", "what", "values in this data set", _provenance(summary)),
        *_section("Models and settings", "what", "value", facts.settings),
        *_counts(chosen, summary, facts),
        *_section("Exploration", "of the trees behind the rows", "figure", exploration.table() if exploration.trees else {}),
        *_quality(summary),
        "## Licence",
        "",
        _licence(facts),
        "",
    ]
    return "\n".join(parts)


def _front_matter(name: str, chosen: ExportFormat, summary: ExportSummary, facts: CardFacts) -> str:
    from datasets import DatasetInfo, Features
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    data_files = [{"split": split, "path": f"data/{split}-*.{chosen.suffix}"} for split in summary.rows]
    size = next((label for bound, label in _SIZES if summary.num_rows < bound), "n>10M")
    card = DatasetCardData(
        pretty_name=chosen.title,
        license=facts.licence,
        size_categories=[size],
        tags=["stepladder", name],
        configs=[{"config_name": "default", "data_files": data_files}],
        stepladder={
            "format": name,
            "version": EXPORT_VERSION,
            "rows": dict(summary.rows),
            **{column: _sorted(values) for column, values in summary.provenance.items()},
            "dropped_by_reason": {**(facts.selected or {}).get("dropped_by_reason", {}), **summary.dropped},
        },
    )
    # Without explicit types, a JSON column that is always null has no type, and the numbers of the next file do not fit it.
    DatasetInfosDict(default=DatasetInfo(features=Features.from_arrow_schema(chosen.schema))).to_dataset_card_data(card)
    return card.to_yaml()


def _splits(summary: ExportSummary) -> list[str]:
    if len(summary.rows) < 2:
        return []
    rows = {split: f"{count} rows, {len(summary.problems[split])} problems" for split, count in summary.rows.items()}
    note = "Splits are by problem: a hash of its id, the same in every export, and problems that ask the same question stay together."
    return [*_section("Splits", "split", "size", rows), note, ""]


def _columns(chosen: ExportFormat, source: ExportSource) -> dict[str, str]:
    meanings = {name: column.meaning for name, column in chosen.all_columns().items()} | PROVENANCE_COLUMNS
    if "advantages" in meanings:
        values = f", V by `{source.target}`" if source.advantage is AdvantageForm.PARENT else ""
        meanings["advantages"] += f" Form `{source.advantage}`: {source.advantage.definition}{values}."
    if "target" in meanings:
        meanings["target"] += f" Definition `{source.target}`."
    return {f"`{name}`": meaning for name, meaning in meanings.items()}


def _provenance(summary: ExportSummary) -> dict[str, str]:
    return {f"`{name}`": ", ".join(f"`{value}`" for value in _sorted(values)) or "none" for name, values in summary.provenance.items()}


def _sorted(values: Iterable[Any]) -> list[Any]:
    return sorted(values, key=lambda value: (value is None, value))


def _counts(chosen: ExportFormat, summary: ExportSummary, facts: CardFacts) -> list[str]:
    kept = {"kept by the export": summary.num_rows}
    dropped = {f"left out by the export: {reason}": count for reason, count in summary.dropped.items()}
    labelled = {}
    if facts.selected is not None:
        labelled = {f"kept by the run's labelling ({chosen.kind.name})": facts.selected["kept"]}
        labelled |= {f"dropped by the run's labelling: {reason}": count for reason, count in facts.selected["dropped_by_reason"].items()}
    return _section("Kept and dropped", "what", "rows", {name: f"{count}" for name, count in {**labelled, **kept, **dropped}.items()})


def _quality(summary: ExportSummary) -> list[str]:
    lines = ["## Quality and size", "", "| per row | mean | smallest | median | largest |", "|---|---|---|---|---|"]
    for name, values in summary.measures.items():
        if values.count:
            figures = (values.mean, values.smallest, values.median, values.largest)
            lines.append(f"| {name} | {' | '.join(f'{value:.4g}' for value in figures)} |")
    return [*lines, ""]


def _licence(facts: CardFacts) -> str:
    origin = f" ({facts.problems})" if facts.problems else ""
    if facts.licence is None:
        return f"The licence of the source problems{origin} was not stated. Find it out before you pass this data set on."
    return f"Licence of the source problems{origin}: `{facts.licence}`. The questions are theirs; a policy wrote the steps."


def _section(title: str, left: str, right: str, rows: Mapping[str, str]) -> list[str]:
    if not rows:
        return []
    return [f"## {title}", "", f"| {left} | {right} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]


def _ratio(sum_: float, count: int) -> str:
    return f"{sum_ / count:.4g}" if count else "none"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%} ({part} of {whole})" if whole else "none"
