"""The files for named models: they load, name a public PRM that is known, and their options for smaller and larger machines load, too."""

import re
from pathlib import Path

import pytest

from stepladder.loops.assembly.checks import check_searches
from stepladder.loops.config.load import load_config
from stepladder.prm.specs import NAMED_SPECS

FOLDER = Path(__file__).parents[4] / "configs" / "models"
FILES = sorted(FOLDER.glob("*.toml"))
PUBLIC = {checkpoint for named in NAMED_SPECS.values() for checkpoint in named.checkpoints}


def test_every_named_model_has_a_file_for_both_tasks() -> None:
    """Eight models, each for GSM8K and MATH."""
    assert len(FILES) == 16
    models = {task: {path.name.removeprefix(task) for path in FILES if path.name.startswith(task)} for task in ("gsm8k-", "math-")}
    assert models["gsm8k-"] == models["math-"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_loads_with_each_of_its_options(path: Path) -> None:
    """As it is, and with the settings that its comment gives for other machines."""
    config = load_config(path, [])
    check_searches(config)
    assert config.prm.model in PUBLIC
    assert config.problems.train.removeprefix("preset:") == path.name.split("-")[0]
    assert path.stem.split("-", 1)[1].lower() == config.policy.model.split("/")[1].lower()
    text = path.read_text()
    for line in re.findall(r"^#   (?:one GPU|eight GPUs).*$", text, flags=re.MULTILINE):
        load_config(path, re.findall(r"--set (\S+)", line))
    assert "Memory:" in text
