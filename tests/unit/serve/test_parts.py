"""Parts of the server on their own: model names, keys, addresses, metrics, and cut texts."""

import pytest
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.errors import ConfigError
from stepladder.mcts.methods import METHODS
from stepladder.serve.errors import ApiError
from stepladder.serve.metrics import Metrics
from stepladder.serve.model_names import read_model_name
from stepladder.serve.replies import before_stop, within
from stepladder.serve.server import KEY_VARIABLE, bound_socket, check_address, is_loopback, read_keys


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_named(method):
    """The name of every method is read, alone, with simulations and with tokens."""
    assert read_model_name(f"m@{method}", served="m") == (method, None, None)
    assert read_model_name(f"m@{method}-12", served="m") == (method, 12, None)
    assert read_model_name(f"m@{method}-12t", served="m") == (method, None, 12)


def test_a_served_name_may_hold_the_mark():
    """A model may itself have ``@`` in its name."""
    assert read_model_name("a@b", served="a@b") == (None, None, None)
    assert read_model_name("a@b@beam-3", served="a@b") == ("beam", 3, None)


@pytest.mark.parametrize(
    "name", ["", "other", "m@", "m@-3", "m@beam-", "m@beam-0", "m@beam-3x", "@beam", "m@beam-1234567890123", "m@beam@beam"]
)
def test_other_names_are_not_found(name):
    """Whatever names no search of the served model is unknown."""
    with pytest.raises(ApiError) as raised:
        read_model_name(name, served="m")
    assert raised.value.status == 404


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    """A file has a key on each line; without one the variable counts, and without both there is none."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_keys(None) == ()
    monkeypatch.setenv(KEY_VARIABLE, " secret ")
    assert read_keys(None) == ("secret",)
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    assert read_keys(file) == ("one", "two")
    file.write_text("\n")
    with pytest.raises(ConfigError, match="must hold a key"):
        read_keys(file)
    with pytest.raises(ConfigError, match="must be a text file of keys"):
        read_keys(tmp_path / "none")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
    ],
)
def test_an_address_that_others_reach_needs_a_key(host, loopback):
    """Only loopback is open without a key, unless that is asked for."""
    assert is_loopback(host) is loopback
    check_address(host, ("key",), anonymous=False)
    check_address(host, (), anonymous=True)
    if not loopback:
        with pytest.raises(ConfigError, match="needs a key"):
            check_address(host, (), anonymous=False)


def test_the_command_refuses_before_it_loads(tmp_path):
    """Wrong use ends with one sentence and code 2."""
    for arguments, told in (
        (["--policy", str(tmp_path), "--host", "0.0.0.0"], "needs a key"),
        (["--policy", str(tmp_path)], "must hold"),
        (["--run", str(tmp_path / "none")], "must be a run"),
        (["--api-key-file", str(tmp_path / "none")], "must be a text file"),
    ):
        done = CliRunner().invoke(app, ["serve", *arguments])
        assert done.exit_code == 2
        assert told in done.stderr


def test_a_taken_port_is_one_sentence():
    """A port in use, or an address of another machine, is refused."""
    taken = bound_socket("127.0.0.1", 0)
    taken.listen()
    try:
        with pytest.raises(ConfigError, match="--port: must be free"):
            bound_socket("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConfigError, match="--host: must be an address"):
            bound_socket("no.such.host.invalid", 0)
    finally:
        taken.close()


def test_metrics_render_counters_histograms_and_gauges():
    """Labels are sorted and escaped, buckets add up, and whole numbers are exact."""
    metrics = Metrics()
    metrics.add("stepladder_requests_total", path='a"b\\c\n', status="200")
    metrics.add("stepladder_generated_tokens_total", 12_345_678)
    for value in (0.05, 0.2, 1000.0):
        metrics.observe("stepladder_search_seconds", value)
    metrics.gauge("stepladder_open_searches", "Open.", lambda: 3)
    lines = metrics.render().splitlines()
    assert 'stepladder_requests_total{path="a\\"b\\\\c\\n",status="200"} 1' in lines
    assert "stepladder_generated_tokens_total 12345678" in lines
    assert 'stepladder_search_seconds_bucket{le="0.05"} 1' in lines
    assert 'stepladder_search_seconds_bucket{le="0.25"} 2' in lines
    assert 'stepladder_search_seconds_bucket{le="+Inf"} 3' in lines
    assert "stepladder_search_seconds_sum 1000.25" in lines
    assert lines.index("# TYPE stepladder_open_searches gauge") + 1 == lines.index("stepladder_open_searches 3")


def test_texts_are_cut():
    """A stop text cuts before its first place, and a number of tokens cuts in whole steps."""
    assert before_stop("abcabc", ["c", "bc"]) == "a"
    assert before_stop("abc", ["x"]) == "abc"
    steps = [("ab", 2), ("cd", 3), ("e", 1)]
    assert within(steps, None) == ("abcde", 6)
    assert within(steps, 5) == ("abcd", 5)
    assert within(steps, 4) == ("ab", 2)
    assert within(steps, 0) == ("", 0)
