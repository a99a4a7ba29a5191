"""Backends from the configuration: what is checked before any work, and a solve whose server dies."""

import contextlib
import os
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.errors import ConfigError
from stepladder.lm.loaded_models import LoadedModels, Role
from stepladder.lm.settings import EngineSettings
from stepladder.lm.vllm_start import check_engine, engine_arguments
from stepladder.loops.assembly import checks, engines
from stepladder.loops.assembly.checks import check_backends
from stepladder.loops.assembly.devices import gpus_per_worker, num_workers
from stepladder.loops.assembly.engines import check_engines, engine_settings
from stepladder.loops.config.load import load_config, with_overrides
from stepladder.loops.config.run import Config
from stepladder.loops.runs.workers import Task, gpu_names, gpu_shares, worker_pool
from stepladder.policy.prompts import StepFormat
from tests.models import save_tiny_policy
from tests.servers import FakeServer, serving


def _config(*overrides: str) -> Config:
    base = {"problems": {"train": "a.jsonl", "test": "b.jsonl"}, "policy": {"model": "m"}}
    return load_config(None, list(overrides), base=base)


def test_where_a_backend_runs_is_no_part_of_a_run() -> None:
    """Memory shares, GPUs and addresses may change when a run is continued; the backend and what it computes may not."""
    plain = _config("policy.backend=vllm")
    moved = _config("policy.backend=vllm", "policy.vllm.memory_share=0.3", "policy.vllm.tensor_parallel=2", "policy.openai.url=http://x")
    assert plain.hash() == moved.hash() and plain.differences(moved) == []
    assert with_overrides(plain, []) is plain
    assert with_overrides(plain, ["policy.vllm.max_context=64"]).differences(plain) == ["policy.vllm.max_context: 64 != None"]
    assert _config().hash() != plain.hash()


def test_a_mistyped_backend_setting_is_named() -> None:
    """Sub-sections are as strict as sections."""
    with pytest.raises(ConfigError, match=r"did you mean 'policy\.vllm\.memory_share'"):
        _config("policy.vllm.memory_shar=0.5")
    with pytest.raises(ConfigError, match=r"policy\.backend"):
        _config("policy.backend=vlm")


def test_backends_are_checked_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """VLLM must be installed, evolve needs weights it can change, and data parallel engines need GPUs of their own."""
    check_backends(_config(), trains=True)
    check_backends(_config("policy.backend=openai"), trains=False)
    with pytest.raises(ConfigError, match="keeps the weights"):
        check_backends(_config("policy.backend=openai"), trains=True)
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    for setting in ("policy.backend=vllm", "prm.backend=vllm"):
        with pytest.raises(ConfigError, match="needs the package vllm"):
            check_backends(_config(setting), trains=False)
    monkeypatch.setattr(checks, "find_spec", lambda name: object())
    shares = ["policy.backend=vllm", "policy.vllm.memory_share=0.7", "policy.vllm.prm_memory_share=0.4"]
    check_backends(_config(*shares), trains=False)
    with pytest.raises(ConfigError, match=r"at most 1: got 0\.7 and 0\.4"):
        check_backends(_config(*shares, "prm.backend=vllm"), trains=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    check_backends(_config("policy.backend=vllm", "policy.vllm.data_parallel=3"), trains=True)
    with pytest.raises(ConfigError, match="got 4 > 3"):
        check_backends(_config("policy.backend=vllm", "policy.vllm.data_parallel=2", "policy.vllm.tensor_parallel=2"), trains=True)


def test_a_device_exists_and_serves_all_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings and vLLM take the first GPU that they see; a cluster has GPUs that this machine has not."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ConfigError, match=rf"device: '{device}' must exist: this machine has 0 GPUs"):
            check_backends(_config(f"policy.device={device}"), trains=False)
    check_backends(_config("policy.device=cuda", "run.cluster=ray"), trains=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(checks, "find_spec", lambda name: object())
    check_backends(_config("policy.device=cuda:0"), trains=True)
    check_backends(_config("policy.device=cuda:1"), trains=False)
    for settings, trains, what in (([], True, "trainings"), (["policy.backend=vllm"], False, "vLLM")):
        with pytest.raises(
            ConfigError, match=rf"for {what}, .*: got 'cuda:1' -- set CUDA_VISIBLE_DEVICES=1 in the environment, and 'cuda'"
        ):
            check_backends(_config("policy.device=cuda:1", *settings), trains=trains)


def test_engines_of_workers_that_share_a_gpu_fit_and_start_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their shares are summed over workers, and each names the size of its cache; a GPU each, or one worker, needs neither."""
    monkeypatch.setattr(checks, "find_spec", lambda name: object())
    monkeypatch.setattr(checks, "uses_gpu", lambda device: device != "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    sharing = ["policy.backend=vllm", "run.workers=3", "policy.device=cuda"]
    with pytest.raises(ConfigError, match=r"got 3 times a memory_share of 0\.45 -- set policy\.vllm\.memory_share to 0\.33 or less"):
        check_backends(_config(*sharing), trains=True)
    small = [*sharing, "policy.vllm.memory_share=0.2"]
    with pytest.raises(ConfigError, match="got no kv_cache_memory_bytes"):
        check_backends(_config(*small), trains=True)
    sized = [*small, "policy.vllm.options.kv_cache_memory_bytes=8000000000"]
    check_backends(_config(*sized), trains=True)
    with pytest.raises(ConfigError, match=r"got 3 times a memory_share of 0\.55 -- set .*memory_share and prm_memory_share to 0\.16"):
        check_backends(_config(*sized, "prm.backend=vllm"), trains=True)
    remedy = ["policy.vllm.memory_share=0.16", "policy.vllm.prm_memory_share=0.16"]
    check_backends(_config(*sized, "prm.backend=vllm", *remedy), trains=True)
    for alone in ("run.workers=1", "policy.vllm.data_parallel=3", "policy.device=cpu"):
        check_backends(_config(*sharing, alone), trains=True)


def test_every_model_that_vllm_is_to_serve_is_checked_in_another_process(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Policies sample, PRMs embed, with their own shares; nothing starts for other backends, or for nodes with devices of their own."""
    asked: list[tuple[str, str, float]] = []

    class Pool:
        def run(self, tasks: list[Task[None]], **more: Any) -> None:
            assert all(task.function is check_engine for task in tasks)
            asked.extend((each["source"], each["task"], each["settings"].memory_share) for each in (task.arguments for task in tasks))

    monkeypatch.setattr(engines, "worker_pool", lambda count, **more: contextlib.nullcontext(Pool()))
    check_engines(_config(), ["m"])
    check_engines(_config("policy.backend=vllm", "run.cluster=ray"), ["m"])
    assert asked == []
    shares = ["policy.vllm.memory_share=0.5", "policy.vllm.prm_memory_share=0.3"]
    check_engines(_config("policy.backend=vllm", *shares), ["m", "other"])
    assert asked == [("m", "generate", 0.5), ("other", "generate", 0.5)]
    asked.clear()
    check_engines(_config("prm.backend=vllm", *shares), ["m"])
    assert asked == [("m", "embed", 0.3)]
    asked.clear()
    (tmp_path / "prm" / "member-00").mkdir(parents=True)
    check_engines(_config("prm.backend=vllm", f"prm.model={tmp_path}/prm", *shares), ["m"])
    assert asked == [(f"{tmp_path}/prm/member-00", "embed", 0.3)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {"cudagraph_mode": "FULL", "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 24, 32]}),
        ({"mode": 0}, {"mode": 0, "cudagraph_mode": "FULL", "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 24, 32]}),
        ({"cudagraph_mode": "NONE"}, {"cudagraph_mode": "NONE"}),
        ({"max_cudagraph_capture_size": 64, "mode": 3}, {"max_cudagraph_capture_size": 64, "mode": 3}),
        (3, 3),
    ],
)
def test_graphs_hold_whole_steps_where_they_can(given: Any, expected: Any) -> None:
    """Up to eight tokens a sequence; graphs that the user set stay. Engines without graphs, other GPUs and PRMs stay as vLLM has them."""
    options = {} if given is None else {"compilation_config": given}
    settings = EngineSettings(max_batch=4, options=options)
    assert engine_arguments("p", "generate", settings, on_cpu=False, whole_graphs=True)["compilation_config"] == expected
    assert engine_arguments("p", "generate", settings, on_cpu=False).get("compilation_config") == given
    assert engine_arguments("p", "embed", settings, on_cpu=False, whole_graphs=True).get("compilation_config") == given
    eager = EngineSettings(options={"enforce_eager": True})
    assert "compilation_config" not in engine_arguments("p", "generate", eager, on_cpu=False, whole_graphs=True)


def test_the_largest_graph_has_two_thousand_tokens() -> None:
    """Sizes rise, the largest is a power of two, and a batch of 512 has graphs for its own size and for arrivals."""
    settings = EngineSettings(max_batch=512)
    config = engine_arguments("p", "generate", settings, on_cpu=False, whole_graphs=True)["compilation_config"]
    sizes = config["cudagraph_capture_sizes"]
    assert sizes == sorted(set(sizes)) and sizes[-1] == 2048 and {1, 256, 512, 1024} < set(sizes) and len(sizes) < 80


def test_engine_arguments_on_a_gpu_are_those_of_the_configuration() -> None:
    """Policy and PRM get their stated shares of the memory; tensor parallelism, block size, context and options pass through to both."""
    config = _config(
        *("policy.vllm.memory_share=0.5", "policy.vllm.prm_memory_share=0.3", "policy.vllm.tensor_parallel=2", "policy.dtype=bfloat16"),
        *("policy.vllm.block_size=16", "policy.vllm.max_context=2048", "policy.max_batch=64", 'policy.vllm.options.quantization="fp8"'),
        "policy.vllm.options.compilation_config={mode=0,cudagraph_capture_sizes=[1,8]}",
    )
    section = config.policy.vllm
    policy = engine_arguments("p", "generate", engine_settings(config, section.memory_share), on_cpu=False)
    prm = engine_arguments("q", "embed", engine_settings(config, section.prm_memory_share), on_cpu=False)
    shared = {
        "tensor_parallel_size": 2,
        "dtype": "bfloat16",
        "block_size": 16,
        "max_model_len": 2048,
        "max_num_seqs": 64,
        "quantization": "fp8",
        "compilation_config": {"mode": 0, "cudagraph_capture_sizes": [1, 8]},
        "enable_prefix_caching": True,
    }
    for arguments, model, share in ((policy, "p", 0.5), (prm, "q", 0.3)):
        assert arguments | shared | {"model": model, "gpu_memory_utilization": share} == arguments
        assert "enforce_eager" not in arguments and "data_parallel_size" not in arguments
    assert (policy["runner"], prm["runner"]) == ("generate", "pooling")


def test_data_parallel_engines_are_workers_with_gpus_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three engines of two GPUs each are three workers that see two GPUs each; on a CPU the setting changes nothing."""
    settings = ["policy.backend=vllm", "policy.vllm.data_parallel=3", "policy.vllm.tensor_parallel=2"]
    config = _config(*settings, "policy.device=cuda")
    assert (num_workers(config), gpus_per_worker(config)) == (3, 2)
    assert gpu_shares(list("012345"), num_workers(config), 2) == ["0,1", "2,3", "4,5"]
    assert num_workers(_config(*settings, "policy.device=cpu", "run.workers=1")) == 1


def test_a_new_round_starts_a_new_engine_and_ends_the_old_one() -> None:
    """An engine is kept while model and settings stay, and closed before one of other weights starts; training ends all of them."""

    class Engine:
        closed = False
        resets = 0

        def reset(self) -> None:
            self.resets += 1

        def close(self) -> None:
            self.closed = True

    alive: list[bool] = []

    def start() -> Engine:
        alive.extend(engine.closed for engine in engines)
        engines.append(Engine())
        return engines[-1]

    engines: list[Engine] = []
    models, policy = LoadedModels(), Role(kind="policy")
    first = models.engine(policy, ("round 0", 1), start)
    assert models.engine(policy, ("round 0", 1), start) is first
    assert first.resets == 2
    second = models.engine(policy, ("round 1", 1), start)
    assert second is not first
    assert alive == [True]
    models.release()
    assert second.closed
    with models:
        assert models.engine(policy, ("round 1", 1), start) is engines[2]
    assert engines[2].closed


def test_gpus_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker gets neighbours of its own among the visible ones; too few is an error; without data parallel engines all see all."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert gpu_shares(gpu_names(), 2, 2) == ["4,5", "6,7"]
    with pytest.raises(ConfigError, match="need 6: found 4"):
        gpu_shares(gpu_names(), 3, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_names() == []
    assert gpus_per_worker(_config("policy.backend=vllm")) is None
    assert gpus_per_worker(_config("policy.vllm.data_parallel=2")) is None
    settings = ["policy.backend=vllm", "policy.vllm.data_parallel=2", "policy.vllm.tensor_parallel=4", "policy.device=cuda"]
    assert gpus_per_worker(_config(*settings)) == 4
    assert num_workers(_config(*settings)) == 2


def visible() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.slow
def test_a_worker_sees_its_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share is in the worker's environment before torch is imported there."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    with worker_pool(1, threads=1, gpus_each=2) as pool:
        assert pool.run([Task(function=visible, arguments={})], on_progress=lambda progress: None) == ["6,7"]


def _solve(folder, url, output, *settings):
    arguments = ["solve", "--policy", str(folder / "model"), "--input", str(folder / "questions.jsonl"), "--output", str(output)]
    arguments += ["--method", "mcts", "--simulations", "6", "--option", "wave=2", "--set", "search.max_trees=2"]
    chosen = ["backend=openai", f"openai.url={url}", "openai.retries=1", "openai.backoff_s=0.01", *settings]
    return CliRunner().invoke(app, [*arguments, *(word for setting in chosen for word in ("--set", f"policy.{setting}"))])


def test_a_server_killed_during_a_solve_loses_nothing(tmp_path) -> None:
    """The command ends with one sentence and exit code 1, keeps finished answers, and continues to the bytes of one never disturbed."""
    StepFormat(answer_pattern=r"(\d)").save(save_tiny_policy(tmp_path / "model"))
    (tmp_path / "questions.jsonl").write_text("".join(f'{{"id": "q{i}", "question": "{i}+{i}"}}\n' for i in range(8)))
    with serving(FakeServer()) as url:
        done = _solve(tmp_path, url, tmp_path / "whole.jsonl")
        assert done.exit_code == 0, done.output
    fake = FakeServer()
    fake.before = lambda number, request: 503 if number >= 60 else None
    with serving(fake) as url:
        failed = _solve(tmp_path, url, tmp_path / "answers.jsonl")
    assert failed.exit_code == 1 and "the server must be there" in failed.output and "Traceback" not in failed.output
    assert not (tmp_path / "answers.jsonl").exists()
    kept = (tmp_path / "answers.jsonl.part").read_text().splitlines()[1:]
    assert 0 < len(kept) < 8
    second = FakeServer()
    with serving(second) as url:
        assert _solve(tmp_path, url, tmp_path / "answers.jsonl").exit_code == 0
    assert (tmp_path / "answers.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    prompts = {tuple(request["prompt"][:4]) for request in second.requests}
    assert len(prompts) == 8 - len(kept)
