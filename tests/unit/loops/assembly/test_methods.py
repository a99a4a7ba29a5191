"""What ``solve --method list`` says."""

from stepladder.commands.solve import explain_methods
from stepladder.mcts.methods import OUTSIDE, PRESETS


def test_every_method_is_explained_with_settings_source_and_departures():
    """Each preset has its paragraph, and each published search without one its reason."""
    text = explain_methods()
    for name, preset in PRESETS.items():
        (paragraph,) = [part for part in text.split("\n\n")[0].split("\n") if part.startswith(f"{name}: ")]
        assert preset.method.description in paragraph
        assert f"source: {preset.source}" in text and (not preset.differs or f"differs: {preset.differs}" in text)
    assert "c=2.0, unvisited=inf" in text
    for name, reason in OUTSIDE.items():
        assert f"{name}: {reason}" in text
