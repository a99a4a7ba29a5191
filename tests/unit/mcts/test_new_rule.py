"""A selection rule from outside the package: one module, one row, and everything else follows."""

import importlib
import textwrap

import numpy as np
import pytest

from stepladder.errors import ConfigError
from stepladder.mcts import methods
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import resolve_method
from stepladder.mcts.presets.preset import row
from stepladder.testing import CharRenderer, ScriptedPolicy, TableScorer
from stepladder.types import Budget
from tests.searches import PROBLEMS, PROVENANCE, propose, score

MODULE = '''
"""The oldest open leaves go on: breadth-first search that skips the first few."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stepladder.mcts.settings.setting_checks import check_count
from stepladder.mcts.strategies.strategy import NO_LEAF, Selection, Strategy, reserve_waves, rows_of
from stepladder.mcts.tree import Tree


@dataclass(frozen=True, kw_only=True, slots=True)
class Oldest(Selection):
    TYPES: ClassVar = ("oldest",)

    type: str = "oldest"
    skipped: int = 0

    def __post_init__(self):
        Selection.__post_init__(self)
        check_count("skipped", self.skipped, least=0)

    def strategy(self, run):
        return OldestStrategy(self)


class OldestStrategy(Strategy):
    def __init__(self, settings):
        self.settings = settings

    def select(self, tree, searches, sizes):
        waves = np.full((len(searches), int(sizes.max())), NO_LEAF)
        for wave, search, size in zip(waves, searches, sizes, strict=True):
            open_leaves = (tree.open_leaves[search.row] > 0) & (tree.children_index[search.row, :, 0] == Tree.UNVISITED)
            found = np.flatnonzero(open_leaves[: tree.num_nodes[search.row]])
            found = found[min(self.settings.skipped, len(found) - 1) :][:size] if len(found) else found
            wave[: len(found)] = found
        reserve_waves(tree, rows_of(searches), waves)
        return waves
'''


@pytest.fixture
def oldest(tmp_path, monkeypatch):
    """The first file: the rule's module, importable."""
    (tmp_path / "oldest_first.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("oldest_first")


@pytest.fixture
def preset(oldest, monkeypatch):
    """The second file: the row that names the rule, among the presets."""
    preset = row("breadth-first", "The oldest leaves first.", source="ours", selection=oldest.Oldest, skipped=1, wave=2)
    monkeypatch.setitem(methods.PRESETS, "breadth-first", preset)
    monkeypatch.setitem(methods.METHODS, "breadth-first", preset.method)
    monkeypatch.setattr(methods, "RULES", (*methods.RULES, oldest.Oldest))
    return preset


def search(method, **budget):
    """Search two problems and return the trees."""
    engine = SearchEngine(
        policy=ScriptedPolicy(propose),
        scorer=TableScorer(score),
        renderer=CharRenderer(),
        method=method,
        budget=Budget(**budget),
        provenance=PROVENANCE,
    )
    return [result.tree for result in engine.search(PROBLEMS[:2])]


def test_a_search_by_a_new_rule(preset):
    """Leaves go on in the order of their numbers; with two per wave and none skipped no expanded node comes before an older open one."""
    assert preset.method.settings() == {"selection": "oldest", "wave": 2, "skipped": 1}
    for tree in search(resolve_method("breadth-first", skipped=0), num_simulations=9, max_depth=9):
        expanded = sorted(set(tree.parents[1:]))
        can_go_on = [node for node, reason in enumerate(tree.stop_reasons) if reason == "step"]
        assert tree.num_simulations == 9
        assert expanded == can_go_on[:9]


def test_settings_of_a_new_rule_are_options_like_others(preset):
    """They can be changed by name, are checked by the module, and are refused elsewhere with the method that takes them."""
    assert resolve_method("breadth-first", skipped=3).selection.skipped == 3
    assert resolve_method("mcts", selection="oldest", skipped=2).selection.skipped == 2
    with pytest.raises(ConfigError, match="method 'breadth-first': skipped must be a whole number >= 0: got -1"):
        resolve_method("breadth-first", skipped=-1)
    with pytest.raises(ConfigError, match="selection 'puct' does not take setting 'skipped' -- it is taken by breadth-first"):
        resolve_method("mcts", skipped=1)
    with pytest.raises(ConfigError, match="selection 'oldest' does not take setting 'c'"):
        resolve_method("breadth-first", c=1.0)


def test_a_row_with_a_setting_of_another_rule_is_refused(oldest):
    """A preset never holds a setting that nothing reads."""
    with pytest.raises(ConfigError, match="selection 'oldest' does not take setting 'groups'"):
        row("x", "x.", source="ours", selection=oldest.Oldest, groups=2)


def test_a_new_rule_changes_the_tree(preset):
    """The setting is read: skipping the oldest leaf gives other trees."""
    first, second = (search(resolve_method("breadth-first", skipped=skipped), num_simulations=6) for skipped in (0, 2))
    assert [tree.parents for tree in first] != [tree.parents for tree in second]
    assert np.all([tree.num_simulations == 6 for tree in first + second])
