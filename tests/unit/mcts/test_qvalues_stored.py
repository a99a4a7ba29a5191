"""The worth of steps that is stored with a tree."""

import pytest

from tests import searches


@pytest.mark.parametrize(("options", "discount"), [({"discount": 0.9}, 0.9), ({"reward": "gain"}, 1.0)])
def test_steps_are_worth_their_reward_and_the_discounted_value(options: dict[str, object], discount: float) -> None:
    """With a discount alone it is 0.9 V; with gains it is V plus the score less the parent's, the root's being that of its first visit."""
    tree = searches.one("mcts", answers=searches.ANSWERS, **options).tree
    assert len(tree.qvalues) == len(tree.values)
    for node in range(1, len(tree.values)):
        value, qvalue, parent = tree.values[node], tree.qvalues[node], tree.parents[node]
        assert (value is None) == (qvalue is None)
        if value is None or qvalue is None:
            continue
        if discount != 1.0:
            assert qvalue == pytest.approx(discount * value, abs=1e-6)
        elif tree.outcomes[node] is None and parent and tree.scores[node] is not None and tree.scores[parent] is not None:
            assert qvalue - value == pytest.approx(tree.scores[node] - tree.scores[parent], abs=1e-5)  # type: ignore[operator]


def test_searches_without_rewards_store_nothing() -> None:
    """The list is empty, and files stay as small as they were."""
    assert searches.one("mcts", answers=searches.ANSWERS).tree.qvalues == []
