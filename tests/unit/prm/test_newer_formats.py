"""The formats of the process reward models of 2025, each saved as a tiny model and compared with an obvious reading of plain logits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stepladder.errors import CheckpointError
from stepladder.lm.loaded_models import LoadedModels
from stepladder.lm.loading import load_tokenizer
from stepladder.lm.settings import EngineSettings
from stepladder.loops.assembly.prms import MemberAccess, judge_renderer, verdict_prompts
from stepladder.prm.checkpoints import load_vocabulary_rows
from stepladder.prm.judge import Judge, judge_prompt
from stepladder.prm.reader import Solution
from stepladder.prm.served import CachedModel
from stepladder.prm.sources import PRMSource
from stepladder.prm.specs import NAMED_SPECS
from stepladder.prm.word_judge import WordJudge
from stepladder.testing import ScriptedPolicy
from stepladder.types import Problem, Step, StopReason
from tests.prm_models import llama3_tokenizer, qwen_tokenizer, save_head_model, save_language_model
from tests.prms import load_reader
from tests.saved_models import checkpoint, last_hidden, lm_logits

QUESTION = "What is 2 + 3 {really}? Say \\boxed{5}."
STEPS = ("Step 1: Add 2 + 3 - 0.", "Step 2: That is {5}.", "", "So 5")


def spec(name):
    return NAMED_SPECS[name].spec


def read(directory, name):
    """Score one solution with a fresh reader."""
    return load_reader(directory, spec(name)).score([Solution(question=QUESTION, steps=STEPS)])[0]


def test_two_classes_at_the_line_break_after_every_step_of_a_chat(tmp_path):
    """PURE-PRM: the question in a chat, every step followed by a line break of its own; (p1 - p0 + 1) / 2, which is p1."""
    save_head_model(tmp_path, qwen_tokenizer(), head="linear", num_outputs=2)
    tokenizer = load_tokenizer(tmp_path)
    messages = [{"role": "user", "content": QUESTION}]
    ids, ends = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)), []
    for step in STEPS:
        ids += [*tokenizer.encode(step), *tokenizer.encode("\n")]
        ends.append(len(ids) - 1)
    assert {ids[end] for end in ends} == {198}
    tensors = checkpoint(tmp_path)
    probabilities = (last_hidden(tmp_path, ids) @ tensors["score.weight"].T + tensors["score.bias"]).softmax(-1)[ends]
    np.testing.assert_allclose(read(tmp_path, "pure-prm"), (probabilities[:, 1] - probabilities[:, 0] + 1) / 2, atol=1e-6)
    np.testing.assert_allclose(read(tmp_path, "pure-prm"), probabilities[:, 1], atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
def test_scores_of_several_heads_are_averaged(tmp_path, layers):
    """ActPRM's ensemble: heads numbered from 0, of one or two layers; the mean of their sigmoids at <extra_0>."""
    save_head_model(tmp_path, qwen_tokenizer(), head="linear", num_outputs=1)
    body, heads = checkpoint(tmp_path), {}
    for number in range(2):
        for layer, width in ((0, 32), (2, 1)) if layers == 2 else ((None, 1),):
            name = f"score.heads.{number}" + ("" if layer is None else f".{layer}")
            heads |= {
                f"{name}.weight": torch.randn(width, 32, generator=torch.manual_seed(number)),
                f"{name}.bias": torch.ones(width) * number,
            }
    save_file({key: value for key, value in body.items() if not key.startswith("score.")} | heads, tmp_path / "model.safetensors")
    tokenizer = load_tokenizer(tmp_path)
    messages = [
        {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "<extra_0>".join(STEPS) + "<extra_0>"},
    ]
    ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False))
    hidden, scores = last_hidden(tmp_path, ids), []
    for number in range(2):
        name, own = f"score.heads.{number}", hidden
        if layers == 2:
            own = (hidden @ heads[f"{name}.0.weight"].T + heads[f"{name}.0.bias"]).relu()
            name += ".2"
        scores.append((own @ heads[f"{name}.weight"].T + heads[f"{name}.bias"]).sigmoid()[:, 0])
    expected = [torch.stack(scores).mean(0)[i].item() for i, token in enumerate(ids) if token == 151651]
    np.testing.assert_allclose(read(tmp_path, "head-ensemble"), expected, atol=1e-6)
    with pytest.raises(CheckpointError, match="must have 3 outputs per token: got 2"):
        load_reader(tmp_path, replace(spec("head-ensemble"), heads=3))


@pytest.mark.parametrize("names", [("heads.0.1", "heads.1.1"), ("heads.1", "heads.2"), ("0", "1")])
def test_other_numbered_tensors_are_no_heads(tmp_path, names):
    """A layer 1 alone, numbers from 1, and two layers without a rectifier between them are refused with the names of the tensors."""
    save_head_model(tmp_path, qwen_tokenizer(), head="linear", num_outputs=1)
    body = {key: value for key, value in checkpoint(tmp_path).items() if not key.startswith("score.")}
    save_file(body | {f"score.{name}.weight": torch.ones(1, 32) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"must be one linear layer, or two with a ReLU between: got .*{names[0]}.weight"):
        load_reader(tmp_path, spec("head-ensemble"))


def test_good_and_bad_tokens_at_a_separator_of_several_characters(tmp_path):
    """VersaPRM: a space and four line breaks are one token, 23535; + is 10 and - is 12 there."""
    save_language_model(tmp_path, llama3_tokenizer(with_breaks=True), arch="llama")
    ids = load_tokenizer(tmp_path).encode(f"{QUESTION} \n\n" + "".join(f"{step} \n\n\n\n" for step in STEPS))
    probabilities = torch.softmax(lm_logits(tmp_path, ids)[:, [12, 10]], -1)[:, 1]
    expected = [probabilities[i].item() for i, token in enumerate(ids) if token == 23535]
    assert len(expected) == len(STEPS)
    np.testing.assert_allclose(read(tmp_path, "versaprm"), expected, atol=1e-6)
    save_language_model(tmp_path / "other", qwen_tokenizer())
    with pytest.raises(CheckpointError, match=r"the marker ' .*' must be the token 23535"):
        read(tmp_path / "other", "versaprm")


def test_a_value_head_at_an_added_token(tmp_path):
    """PQM: [PRM] is added to the vocabulary, TRL's value head is read there; the prompt is the one of its code."""
    tokenizer = qwen_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[PRM]"]})
    save_head_model(tmp_path, tokenizer, head="v_head", num_outputs=1)
    # A vocabulary with gaps, as that of this tokenizer, gets another id for the token when it is loaded.
    marker = load_tokenizer(tmp_path).convert_tokens_to_ids("[PRM]")
    prompt = (
        "Below is an instruction that describes a task.\nWrite a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{QUESTION}\n\n### Response: Let's think step by step\n"
    )
    ids = load_tokenizer(tmp_path).encode(prompt + "\n".join(f"{step} [PRM]" for step in STEPS))
    tensors = checkpoint(tmp_path)
    outputs = (last_hidden(tmp_path, ids) @ tensors["v_head.summary.weight"].T + tensors["v_head.summary.bias"])[:, 0]
    expected = [outputs[i].sigmoid().item() for i, token in enumerate(ids) if token == marker]
    assert len(expected) == len(STEPS)
    np.testing.assert_allclose(read(tmp_path, "pqm"), expected, atol=1e-6)
    save_head_model(tmp_path / "without", qwen_tokenizer(), head="v_head", num_outputs=1)
    with pytest.raises(CheckpointError, match=r"the marker '\[PRM\]' must be one token"):
        read(tmp_path / "without", "pqm")


def test_a_head_in_a_file_of_its_own(tmp_path):
    """ReasonFlux-PRM-1.5B: a language model and a linear layer beside it, read at the last token of question and steps so far."""
    save_language_model(tmp_path, qwen_tokenizer())
    head = torch.nn.Linear(32, 1)
    torch.save(head.state_dict(), tmp_path / "reward_head.pt")
    tokenizer, expected = load_tokenizer(tmp_path), []
    for number in range(len(STEPS)):
        hidden = last_hidden(tmp_path, tokenizer.encode(QUESTION + "\n\n".join(STEPS[: number + 1])))
        expected.append(head(hidden[-1]).sigmoid().item())
    np.testing.assert_allclose(read(tmp_path, "reasonflux-prm-1.5b"), expected, atol=1e-6)
    torch.save({"0.weight": head.weight, "2.weight": head.weight}, tmp_path / "reward_head.pt")
    with pytest.raises(CheckpointError, match=r"reward_head.pt: must hold one linear layer: got \['0.weight', '2.weight'\]"):
        read(tmp_path, "reasonflux-prm-1.5b")


def test_an_outcome_model_is_read_at_the_end_of_its_chat(tmp_path):
    """AceMath-RM: every solution so far is a chat of its own, whose last token has the number; the score is its sigmoid."""
    save_head_model(tmp_path, qwen_tokenizer(), head="linear", num_outputs=1)
    tokenizer, tensors, expected = load_tokenizer(tmp_path), checkpoint(tmp_path), []
    for number in range(len(STEPS)):
        messages = [
            {"role": "system", "content": "Please reason step by step, and check your final answer within \\boxed{}."},
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": "\n\n".join(STEPS[: number + 1])},
        ]
        hidden = last_hidden(tmp_path, tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False)))
        expected.append((hidden[-1] @ tensors["score.weight"][0] + tensors["score.bias"][0]).sigmoid().item())
    np.testing.assert_allclose(read(tmp_path, "acemath-rm"), expected, atol=1e-6)


def test_a_reasoning_judge_begins_as_it_was_trained(tmp_path):
    """ThinkPRM: the review request as a chat, the forced opening after it, and the last verdict of a review counts."""
    save_language_model(tmp_path, qwen_tokenizer(), max_positions=2048)
    seen, thinker = [], spec("thinkprm")

    def propose(prefix_ids, sample, seed):
        seen.append(load_tokenizer(tmp_path).decode(prefix_ids))
        text = r"Step 1: \boxed{correct} Step 2: " + (r"\boxed{correct}" if sample else r"\boxed{incorrect}")
        return Step(token_ids=(1,), logps=(0.0,), text=text, stop_reason=StopReason.END)

    renderer = judge_renderer(load_tokenizer(tmp_path), thinker)
    judge = Judge(
        ScriptedPolicy(propose),
        thinker,
        lambda prompt: renderer.prompt_ids(Problem(id="q", question=prompt)),
        encode=lambda text: renderer.encode_text(text, place="opening"),
    )
    assert judge.score([Solution(question="Q", steps=("Step 1: a",))]) == [(0.75,)]
    assert seen[0].startswith(
        "<|im_start|>user\nYou are given a math problem and a proposed step-by-step solution:\n\n[Math Problem]\n\nQ\n"
    )
    assert "Step 1: a\n\nReview and critique each step" in seen[0]
    assert seen[0].endswith("<|im_start|>assistant\nLet's verify step by step:")


def test_a_judge_says_its_word_after_what_it_has_written(tmp_path):
    """GenPRM: the analysis is sampled after its forced opening; the score is p(Yes) / (p(Yes) + p(No)) after the forced closing."""
    save_language_model(tmp_path, qwen_tokenizer(), max_positions=2048)
    tokenizer = load_tokenizer(tmp_path)
    judge = replace(spec("genprm"), num_verdicts=1)
    head = (
        f"<|im_start|>system\n{judge.system}<|im_end|>\n<|im_start|>user\nQuestion: Q\n\n\n\na<|im_end|>\n<|im_start|>assistant\n"
        "<analyze>\nLet's analyze the Paragraph 1 step by step: "
    )
    policy, prompt_ids, encode = MemberAccess(LoadedModels(), EngineSettings()).judge_policy(
        PRMSource(model=str(tmp_path), device="cpu"), judge
    )
    prefix = (*prompt_ids(judge_prompt(judge, "Q", ["a"])), *encode(judge.opening.replace("{number}", "1")))
    assert tokenizer.decode(prefix) == head
    written: list[int] = []
    inner, collect = policy, policy.collect
    inner.collect = lambda: [_noted(result, written) for result in collect()]  # type: ignore[method-assign]
    prompts = verdict_prompts(tokenizer, judge)
    rows = load_vocabulary_rows(tmp_path, [prompts.words[side][0] for side in (False, True)], device="cpu")
    word = WordJudge(CachedModel(rows, num_outputs=2), prompts)
    got = Judge(inner, judge, prompt_ids, encode=encode, word=word, max_tokens=8).score([Solution(question="Q", steps=("a",))])
    ids = [*prefix, *written, *prompts.tail]
    assert tokenizer.decode(prompts.tail) == "\n<output>\n**Judgement**: $\\boxed{"
    yes, no = (tokenizer.encode(each)[0] for each in ("Yes", "No"))
    logits = lm_logits(tmp_path, ids)[-1]
    assert got == [(pytest.approx(torch.sigmoid(logits[yes] - logits[no]).item(), abs=1e-5),)]


def _noted(result, written):
    written += [token for sample in result.samples for step in sample for token in step.token_ids]
    return result
