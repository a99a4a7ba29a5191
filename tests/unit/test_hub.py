"""The hub where it cannot be reached: one quick question, one sentence, and the cache still serves."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from stepladder import hub
from stepladder.cli.app import app
from stepladder.data.datasets.problems import read_problems
from stepladder.errors import BackendError, CheckpointError, DataFormatError
from stepladder.lm.loading import load_causal_lm, load_model_settings, load_tokenizer
from tests.models import save_tiny_policy
from tests.servers import FakeServer, http_reply, serving


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Point the hub to a port at which nobody listens."""
    with serving(FakeServer()) as url:
        pass
    monkeypatch.setattr(constants, "ENDPOINT", url.removesuffix("/v1"))
    hub.why_unreachable.cache_clear()
    yield
    hub.why_unreachable.cache_clear()


@pytest.mark.parametrize(
    ("load", "error"),
    [
        (lambda: load_tokenizer("nobody/nothing"), CheckpointError),
        (lambda: load_causal_lm("nobody/nothing"), CheckpointError),
        (lambda: load_model_settings("nothing"), CheckpointError),
        (lambda: read_problems("nobody/nothing").problems, DataFormatError),
    ],
    ids=["tokenizer", "model", "settings", "problems"],
)
@pytest.mark.usefixtures("unreachable")
def test_what_is_not_there_is_one_sentence_within_seconds(load, error: type[Exception]) -> None:
    """Models and data sets alike; no library tries again and again."""
    begin = time.monotonic()
    with pytest.raises(error, match=r"no such directory, the cache holds no such .*cannot be reached .*-- correct the path"):
        load()
    assert time.monotonic() - begin < 5
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.usefixtures("unreachable")
def test_the_command_line_says_it_once() -> None:
    """Exit code 2, and nothing else on the screen."""
    done = CliRunner().invoke(app, ["solve", "1+1", "--policy", "nobody/nothing"])
    assert done.exit_code == 2
    assert done.output.count("cannot be reached") == 1
    assert "Retry" not in done.output


@pytest.mark.usefixtures("unreachable")
def test_a_policy_that_is_not_there_is_refused_before_model_libraries_load() -> None:
    """A misspelt name is answered in the time that the settings take: torch and transformers would take many times as long."""
    code = (
        "import sys\nfrom stepladder.commands.evolve import check_settings\nfrom stepladder.loops.config.load import load_config\n"
        "config = load_config(None, ['problems.train=x.jsonl', 'problems.test=y.jsonl', 'policy.model=my-modle'])\n"
        "try:\n    check_settings(config)\nexcept Exception as error:\n    print(error)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    said, loaded = done.stdout.splitlines()
    assert said.startswith("my-modle: must be a directory or a hub id") and loaded == "[]"


def test_a_data_set_to_import_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    """As for models."""
    from stepladder.commands.export import import_rows

    with pytest.raises(BackendError, match="hub:nobody/nothing: must be a directory or a hub id"):
        import_rows("hub:nobody/nothing", tmp_path / "run")


@pytest.mark.usefixtures("unreachable")
def test_what_is_in_the_cache_is_loaded_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that was fetched earlier loads at once."""
    snapshots = tmp_path / "models--some--model"
    folder = snapshots / "snapshots" / ("0" * 40)
    save_tiny_policy(folder)
    (snapshots / "refs").mkdir()
    (snapshots / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    begin = time.monotonic()
    assert len(load_tokenizer("some/model")) == len(load_tokenizer(folder))
    assert time.monotonic() - begin < 5


def test_a_hub_that_answers_anything_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once, and an error of its own is an answer."""
    fake, asked = FakeServer(), []
    fake.raw = lambda path, request: asked.append(path) or [http_reply("", status="503 Service Unavailable")]
    hub.why_unreachable.cache_clear()
    with serving(fake) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        assert [hub.why_unreachable(), hub.why_unreachable()] == [None, None]
        with hub.cached_where_unreachable():
            assert huggingface_hub.constants.HF_HUB_OFFLINE is False
    hub.why_unreachable.cache_clear()
    assert len(asked) == 1


def test_a_name_that_is_looked_up_for_ever_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up has no timeout of its own."""

    class Slow:
        def head(self, url: str, timeout: float) -> None:
            time.sleep(1)

    monkeypatch.setattr(hub, "_ANSWER_S", 0.1)
    monkeypatch.setattr("huggingface_hub.utils.get_session", Slow)
    hub.why_unreachable.cache_clear()
    assert hub.why_unreachable() == "no answer within 0.2 s"
    hub.why_unreachable.cache_clear()
