"""Estimates of memory and disk by hand, and prompts against a context."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from stepladder.errors import ConfigError
from stepladder.lm.settings import LoraSettings, StageSettings
from stepladder.loops.assembly.checks import check_adapters
from stepladder.loops.assembly.estimates import ModelShape, cache_memory, checkpoint_disk, training_memory, weight_bytes
from stepladder.loops.assembly.preflight import Need, PromptLengths, disk_need, model_facts, prompt_lengths, search_need, training_needs
from stepladder.loops.config.run import Config
from stepladder.types import Problem
from tests.models import save_tiny_policy

SHAPE = ModelShape(parameters=1000, layers=2, width=8, inner=16, queries=8, keys=4, vocabulary=10, stored_bytes=2)


def test_shape_of_a_configuration():
    """Qwen2.5 7B: 28 layers, 28 heads of 128 that share 4 keys, 3584 wide."""
    config = SimpleNamespace(
        num_attention_heads=28, num_key_value_heads=4, hidden_size=3584, num_hidden_layers=28, intermediate_size=18944, vocab_size=152064,
        dtype="torch.bfloat16",
    )  # fmt: skip
    shape = ModelShape.of(config, 7_615_616_512)
    assert (shape.keys, shape.queries, shape.stored_bytes) == (512, 3584, 2)
    # 64 rows of 4,096 tokens: 64 * 4096 * 2 * 28 * 512 * 2 = 15,032,385,536 bytes, the 15 GB of docs/doctor.md.
    assert cache_memory(shape, rows=64, tokens=4096, value_bytes=2) == 15_032_385_536


@pytest.mark.parametrize(("dtype", "on_gpu", "expected"), [("auto", False, 4), ("auto", True, 2), ("bfloat16", False, 2)])
def test_bytes_of_a_weight(dtype, on_gpu, expected):
    """``auto`` is float32 on a CPU and the checkpoint's type on a GPU."""
    assert weight_bytes(SHAPE, dtype, on_gpu=on_gpu) == expected


def test_training_memory_by_hand():
    """Ten tokens through two layers, eight wide, ten tokens of vocabulary."""
    # 16 * 1000 + 10 * 2 * 17 * 8 * 4 + 10 * 10 * 8 = 16,000 + 10,880 + 800
    assert training_memory(SHAPE, StageSettings(), pass_tokens=10, has_head=False, on_gpu=False) == 27_680
    # A PRM has no logits of the vocabulary; bfloat16 halves the activations.
    assert training_memory(SHAPE, StageSettings(bf16=True), pass_tokens=10, has_head=True, on_gpu=False) == 16_000 + 5_440
    # Checkpointing: 10 * (2 + 17) * 8 * 4 = 6,080
    assert training_memory(SHAPE, StageSettings(gradient_checkpointing=True), pass_tokens=10, has_head=True, on_gpu=False) == 16_000 + 6_080


def test_trainings_on_a_gpu_compute_in_bfloat16():
    """Unless the settings say otherwise; activations then take half: 16,000 + 10 * 2 * 17 * 8 * 2."""
    assert training_memory(SHAPE, StageSettings(), pass_tokens=10, has_head=True, on_gpu=True) == 16_000 + 5_440
    assert training_memory(SHAPE, StageSettings(bf16=False), pass_tokens=10, has_head=True, on_gpu=True) == 16_000 + 10_880


def test_logits_take_two_gibibytes_at_most():
    """A row of 2,048 tokens has 2,048 * 262,144 * 4 = 2^31 bytes of logits, of which 2^30 exist at once, and as many of their gradient."""
    shape = SHAPE._replace(vocabulary=262_144)
    body = training_memory(shape, StageSettings(), pass_tokens=2048, has_head=True, on_gpu=False)
    assert training_memory(shape, StageSettings(), pass_tokens=2048, has_head=False, on_gpu=False) == body + 2**31
    # 100 tokens: 100 * 262,144 * 8.
    body = training_memory(shape, StageSettings(), pass_tokens=100, has_head=True, on_gpu=False)
    assert training_memory(shape, StageSettings(), pass_tokens=100, has_head=False, on_gpu=False) == body + 209_715_200


def test_adapters_need_less():
    """The frozen weights in their own type, and 16 bytes for each weight of rank 3 on the sides of seven linear layers."""
    # q and o: 2 * (8 + 8) = 32; k and v: 2 * (8 + 4) = 24; gate, up, down: 3 * (8 + 16) = 72; together 128 a layer.
    adapters = 16 * 3 * 2 * 128
    assert training_memory(SHAPE, StageSettings(lora=LoraSettings(r=3)), pass_tokens=0, has_head=True, on_gpu=False) == 2 * 1000 + adapters
    assert (
        training_memory(SHAPE, StageSettings(lora=LoraSettings(r=3, four_bit=True)), pass_tokens=0, has_head=True, on_gpu=False)
        == 500 + adapters
    )


def test_checkpoints_take_disk():
    """Weights and two moments in float32, of each checkpoint that is kept; the best one is kept as well."""
    assert checkpoint_disk(SHAPE, StageSettings()) == 0
    assert checkpoint_disk(SHAPE, StageSettings(checkpoint_every=5, keep_checkpoints=2)) == 2 * 12 * 1000
    assert checkpoint_disk(SHAPE, StageSettings(checkpoint_every=5, keep_checkpoints=2, held_out=0.1)) == 3 * 12 * 1000


def test_a_need_warns_if_there_is_too_little():
    """The warning has both sizes and the remedy; an unknown size gives none, and full caches alone give none."""
    need = Need("sft", 3 << 30, 3 << 30, 2 << 30, "take a smaller one")
    assert need.warning == "sft: needs at least 3.0 GiB (an estimate): there are 2.0 GiB -- take a smaller one"
    assert need._replace(there=None).warning is None
    assert need._replace(there=3 << 30).warning is None
    assert need._replace(needed=1 << 30).warning is None
    assert need._replace(needed=1 << 30).sentence == "sft: takes at least 1.0 GiB, at most 3.0 GiB, of 2.0 GiB"


def test_a_training_takes_all_rows_of_a_pass_at_most(tmp_path):
    """Solutions of 12 tokens: a pass holds 3 rows of SFT, or 3 pairs. The least is a tree of 20 tokens, or one solution if unpacked."""
    model = save_tiny_policy(tmp_path / "model")
    rows = {"batch_size": 8, "micro_batch_size": 3, "row_tokens": 20}
    config = _config(
        model,
        prm={"enabled": False},
        search={"max_depth": 3, "max_step_tokens": 4},
        sft=rows | {"packed": False},
        preference=rows | {"enabled": True},
    )
    shape = model_facts(str(model)).shape
    assert shape is not None
    needs = {need.stage: (need.needed, need.at_most) for need in training_needs(config, str(model))}

    def taken(stage: StageSettings, tokens: int) -> int:
        return training_memory(shape, stage, pass_tokens=tokens, has_head=False, on_gpu=False)

    assert needs["sft"] == (taken(config.sft, 12), taken(config.sft, 3 * 12))
    assert needs["preference"] == (taken(config.preference, 20), taken(config.preference, 3 * 2 * 12))


class _Letters:
    """A renderer whose prompts have two tokens and one per letter."""

    hash = "letters"

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        return (0, 1, *(2 for _ in problem.question))

    def extract_answer(self, text: str) -> str | None:
        return text

    def decode(self, token_ids) -> str:
        return ""


def _measured(*questions: str, context: int, solution: int = 0) -> PromptLengths:
    problems = [Problem(id=f"p{number}", question=question) for number, question in enumerate(questions)]
    return prompt_lengths(_Letters(), "train", problems, policy="m", context=context, solution=solution)


def test_prompts_against_a_context():
    """Prompts of 3 and 5 tokens: a context of 6 has room, of 5 for one of them, of 3 for none."""
    fits = _measured("a", "bcd", context=6)
    assert (fits.longest, fits.longest_id, fits.warning) == (5, "p1", None)
    fits.check()
    one = _measured("a", "bcd", context=5)
    one.check()
    assert one.warning is not None and "'p1' has 5 tokens, and m takes 5" in one.warning
    with pytest.raises(ConfigError, match=r"^train: a prompt .* 3 tokens that m takes: no prompt does, the longest has 5 -- "):
        _measured("a", "bcd", context=3).check()


def test_solutions_against_a_context():
    """A prompt of 5 and a solution of 4 tokens need 9."""
    assert _measured("bcd", context=9, solution=4).warning is None
    warning = _measured("bcd", context=8, solution=4).warning
    assert warning is not None and "solutions end after 3 --" in warning


def _config(model: Path, **sections) -> Config:
    plain = {"problems": {"train": "x", "test": "y"}, "policy": {"model": str(model), "device": "cpu"}, **sections}
    return Config.model_validate(plain)


def test_needs_of_a_model_by_hand(tmp_path):
    """A real model directory: its parameters are counted from the file, and the stages that run are listed."""
    model = save_tiny_policy(tmp_path / "model")
    config = _config(model, prm={"enabled": False}, preference={"enabled": False}, run={"rounds": 2, "workers": 1})
    shape = model_facts(str(model)).shape
    assert shape is not None
    assert [need.stage for need in training_needs(config, str(model))] == ["sft"]
    disk = disk_need(config, str(model), tmp_path / "run" / "deep")
    assert disk is not None and disk.needed == 3 * shape.parameters * shape.stored_bytes
    # A stage that is off leaves no checkpoints.
    off = _config(model, prm={"enabled": False}, preference={"enabled": False, "checkpoint_every": 5}, run={"rounds": 2})
    without = disk_need(off, str(model), tmp_path)
    assert without is not None and without.needed == disk.needed
    search = search_need(config, str(model), [], workers=2, num_problems=5)
    assert search is not None and search.needed == 2 * 4 * shape.parameters
    with_prm = search_need(config, str(model), [None], workers=2, num_problems=5)
    assert with_prm is not None and with_prm.needed == 2 * search.needed


def test_modules_that_get_adapters_are_in_the_policy(tmp_path):
    """Names of layers, or a pattern for their full names; what is missing or is no linear layer is refused with the section's name."""
    model = save_tiny_policy(tmp_path / "model")

    def named(modules: str | list[str]) -> Config:
        return _config(model, preference={"lora": {"target_modules": modules}})

    for right in ("all-linear", ["q_proj", "up_proj"], r".*self_attn\.[qv]_proj"):
        check_adapters(named(right))
    for wrong in (["q_projection"], "self_attn", ["input_layernorm"]):
        with pytest.raises(ConfigError, match=r"^preference\.lora\.target_modules: must name linear layers .*: got .* -- it has .*q_proj"):
            check_adapters(named(wrong))
    with pytest.raises(ConfigError, match=r"^sft\.lora\.target_modules"):
        check_adapters(_config(model, rounds=[{"round": "2-", "sft": {"lora": {"target_modules": ["c_attn"]}}}]))
