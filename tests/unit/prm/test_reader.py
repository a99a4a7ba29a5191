"""Every family is read from a saved tiny model with the real marker ids and compared with an obvious reading of plain logits."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.lm.loading import load_tokenizer
from stepladder.prm.layout import SolutionLayout
from stepladder.prm.outputs import scores_of
from stepladder.prm.reader import Solution
from stepladder.prm.specs import NAMED_SPECS, SPEC_FILE, PRMSpec, resolve_spec
from tests.prm_models import llama3_tokenizer, mistral_tokenizer, qwen_tokenizer, save_head_model, save_language_model
from tests.prms import load_reader
from tests.saved_models import checkpoint, last_hidden, lm_logits

QUESTION = "What is 2 + 3 {really}? Say \\boxed{5}."
STEPS = ("Step 1: Add 2 + 3 - 0.", "Step 2: That is {5}.", "", "So 5")


def spec(name):
    return NAMED_SPECS[name].spec


def read(directory, name, steps=STEPS, **options):
    """Score one solution with a fresh reader."""
    reader = load_reader(directory, spec(name), **options)
    return reader.score([Solution(question=QUESTION, steps=tuple(steps))])[0]


def test_two_classes_at_a_marker_in_a_chat_are_read_where_the_marker_stands(tmp_path):
    """Qwen2.5-Math-PRM: a chat with its system prompt, softmax of both outputs at every <extra_0>, second class; none of its code runs."""
    save_head_model(tmp_path, qwen_tokenizer(), head="mlp", num_outputs=2)
    tokenizer = load_tokenizer(tmp_path)
    messages = [
        {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "<extra_0>".join(STEPS) + "<extra_0>"},
    ]
    ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False))
    tensors = checkpoint(tmp_path)
    hidden = last_hidden(tmp_path, ids) @ tensors["score.0.weight"].T + tensors["score.0.bias"]
    probabilities = torch.softmax(hidden.relu() @ tensors["score.2.weight"].T + tensors["score.2.bias"], -1)
    expected = [probabilities[i, 1].item() for i, token in enumerate(ids) if token == 151651]
    assert len(expected) == len(STEPS)
    np.testing.assert_allclose(read(tmp_path, "qwen2.5-math-prm"), expected, atol=1e-6)


def test_good_and_bad_tokens_at_a_marker_are_read_where_the_marker_stands(tmp_path):
    """Math-Shepherd: question, a space, lines that end with ки; logits of ids 648 and 387 at every id 12902."""
    save_language_model(tmp_path, mistral_tokenizer(), arch="mistral")
    text = f"{QUESTION} " + "\n".join(f"{step} ки" for step in STEPS)
    ids = load_tokenizer(tmp_path).encode(text)
    probabilities = torch.softmax(lm_logits(tmp_path, ids)[:, [648, 387]], -1)[:, 0]
    expected = [probabilities[i].item() for i, token in enumerate(ids) if token == 12902]
    assert len(expected) == len(STEPS)
    np.testing.assert_allclose(read(tmp_path, "math-shepherd"), expected, atol=1e-6)


def test_good_and_bad_tokens_at_five_line_breaks(tmp_path):
    """OpenR's Math-psa: id 76325 is the marker with the space before it, ' +' is 488 and ' -' is 481."""
    save_language_model(tmp_path, qwen_tokenizer())
    text = f"{QUESTION} " + " ".join(f"{step} \n\n\n\n\n" for step in STEPS)
    ids = load_tokenizer(tmp_path).encode(text)
    probabilities = torch.softmax(lm_logits(tmp_path, ids)[:, [488, 481]], -1)[:, 0]
    expected = [probabilities[i].item() for i, token in enumerate(ids) if token == 76325]
    assert len(expected) == len(STEPS)
    np.testing.assert_allclose(read(tmp_path, "openr-math-psa"), expected, atol=1e-6)


def test_a_turn_per_step_is_read_before_the_assistants_answer(tmp_path):
    """RLHFlow: one conversation per step, whose third-last token predicts + (the steps hold + and - of their own, too)."""
    save_language_model(tmp_path, llama3_tokenizer(), arch="llama")
    tokenizer = load_tokenizer(tmp_path)
    expected, conversation = [], []
    for i, step in enumerate(STEPS):
        content = f"{QUESTION} {step}" if i == 0 else step
        conversation += [{"role": "user", "content": content}, {"role": "assistant", "content": "+"}]
        ids = tokenizer.encode(tokenizer.apply_chat_template(conversation, tokenize=False), add_special_tokens=False)
        assert ids[-2:] == [10, tokenizer.eos_token_id]
        expected.append(torch.softmax(lm_logits(tmp_path, ids)[-3, [10, 12]], -1)[0].item())
    np.testing.assert_allclose(read(tmp_path, "rlhflow-llama"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "head", "num_outputs"), [("skywork-o1-open-prm", "v_head", 1), ("trl", "linear", 2), ("ppm", "linear", 1)]
)
def test_heads_at_the_last_token_of_every_piece(tmp_path, name, head, num_outputs):
    """Skywork (value head, sigmoid), TRL (two classes) and PPM (tanh): question and steps are encoded one by one and joined as ids."""
    save_head_model(tmp_path, qwen_tokenizer(), head=head, num_outputs=num_outputs)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode(tokenizer.bos_token + QUESTION + ("" if name == "trl" else "\n"))
    ends = []
    for step in STEPS:
        ids += tokenizer.encode(step) + ([] if name == "ppm" else tokenizer.encode("\n"))
        ends.append(len(ids) - 1)
    tensors = checkpoint(tmp_path)
    prefix = "v_head.summary" if head == "v_head" else "score"
    outputs = last_hidden(tmp_path, ids) @ tensors[f"{prefix}.weight"].T
    outputs = (outputs + tensors.get(f"{prefix}.bias", 0.0))[ends]
    expected = {
        "skywork-o1-open-prm": lambda: outputs[:, 0].sigmoid(),
        "trl": lambda: outputs.softmax(-1)[:, 1],
        "ppm": lambda: (outputs[:, 0].tanh() + 1) / 2,
    }[name]()
    got = read(tmp_path, name)
    assert (got[2] is None) == (name == "ppm"), "without a marker an empty step has no token to read"
    keep = [i for i, score in enumerate(got) if score is not None]
    np.testing.assert_allclose([got[i] for i in keep], expected[keep], atol=1e-6)


def test_an_implicit_model_is_read_as_the_log_ratio_over_each_steps_tokens(tmp_path):
    """The scores are sigmoid(beta * sum over the step's tokens of log pi - log pi_ref), with log-softmax over the whole vocabulary."""
    own, reference = (save_language_model(tmp_path / str(seed), qwen_tokenizer(), seed=seed) for seed in (1, 2))
    tokenizer = load_tokenizer(own)
    head = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(head + "\n\n".join(STEPS))
    spans, text = [], head
    for i, step in enumerate(STEPS):
        start = len(tokenizer.encode(text))
        text += ("\n\n" if i else "") + step
        spans.append((start, len(tokenizer.encode(text))))
    logps = []
    for directory in (own, reference):
        full = lm_logits(directory, ids).log_softmax(-1)
        logps.append(torch.tensor([0.0] + [full[i - 1, ids[i]].item() for i in range(1, len(ids))]))
    ratio = (logps[0] - logps[1]).double()
    beta = spec("implicit").beta
    got = read(own, "implicit", reference=reference)
    assert got[2] is None, "an empty step has no tokens"
    # The empty step's separator belongs to the step after it.
    spans[3] = (spans[2][0], spans[3][1])
    for i in (0, 1, 3):
        begin, end = spans[i]
        assert got[i] == pytest.approx(torch.sigmoid(beta * ratio[begin:end].sum()).item(), abs=1e-7)
    with pytest.raises(ConfigError, match="--reference"):
        read(own, "implicit")


@pytest.mark.parametrize(
    "name", ["qwen2.5-math-prm", "math-shepherd", "openr-math-psa", "rlhflow-llama", "skywork-o1-open-prm", "implicit"]
)
def test_growing_solutions_forwards_new_tokens_only_and_gives_the_scores_of_a_full_forward(tmp_path, name):
    """A tree of solutions scored step by step forwards at most 1.05 of its distinct tokens; scores equal a fresh reader's within 1e-5."""
    options = {}
    if spec(name).family in ("two-class", "value-head"):
        head = "mlp" if name.startswith("qwen") else "v_head"
        save_head_model(tmp_path, qwen_tokenizer(), head=head, num_outputs=spec(name).num_outputs)
    else:
        tokenizer = {"math-shepherd": mistral_tokenizer, "rlhflow-llama": llama3_tokenizer}.get(name, qwen_tokenizer)()
        save_language_model(
            tmp_path, tokenizer, arch="llama" if name == "rlhflow-llama" else "mistral" if name == "math-shepherd" else "qwen2"
        )
        if name == "implicit":
            options["reference"] = save_language_model(tmp_path / "ref", tokenizer, seed=5)
    reader = load_reader(tmp_path, spec(name), **options)
    paths = [("a = 1",), ("b = 2",), ("a = 1", "c = 3"), ("a = 1", "d"), ("a = 1", "c = 3", "So 4."), ("b = 2", "e")]
    solutions = [Solution(question=QUESTION, steps=path) for path in paths]
    grown = [reader.score([solution])[0] for solution in solutions]
    unique = {ids[: i + 1] for ids in (reader.layout.lay_out(QUESTION, path).token_ids for path in paths) for i in range(len(ids))}
    assert len(unique) <= reader.forwarded_tokens <= 1.05 * len(unique)
    for solution, scores in zip(solutions, grown, strict=True):
        fresh = load_reader(tmp_path, spec(name), **options)
        np.testing.assert_allclose(scores, fresh.score([solution])[0], atol=1e-5)
    forwarded = reader.forwarded_tokens
    assert reader.score(solutions) == grown
    assert reader.forwarded_tokens == forwarded


def test_scores_do_not_depend_on_how_solutions_are_batched(tmp_path):
    """One solution at a time, all at once, or in passes that are smaller than a solution."""
    save_head_model(tmp_path, qwen_tokenizer(), head="mlp", num_outputs=2)
    solutions = [Solution(question=QUESTION, steps=STEPS[: i + 1]) for i in range(4)] + [Solution(question="?", steps=())]
    whole = load_reader(tmp_path, spec("qwen2.5-math-prm"))
    small = load_reader(tmp_path, spec("qwen2.5-math-prm"))
    small._max_batch_tokens = 1
    single, together = [small.score([solution])[0] for solution in solutions], whole.score(solutions)
    assert single[-1] == together[-1] == ()
    for one, other in zip(single, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_steps_beyond_the_context_are_not_scored_and_the_others_are(tmp_path):
    """With a context of 130 tokens the late markers have no score, and the early ones the score of a long context."""
    directories = []
    for positions in (130, 512):
        directory = save_head_model(tmp_path / str(positions), qwen_tokenizer(), head="mlp", num_outputs=2, max_positions=positions)
        directories.append(directory)
    short, long = ([*read(directory, "qwen2.5-math-prm", ("one", "two", "x" * 90, "end"))] for directory in directories)
    assert len(SolutionLayout(qwen_tokenizer(), spec("qwen2.5-math-prm")).lay_out(QUESTION, ("one", "two")).token_ids) <= 160
    kept = [score for score in short if score is not None]
    assert short[-1] is None
    assert kept == pytest.approx(long[: len(kept)], abs=1e-6)
    assert None not in long


@pytest.mark.parametrize(
    ("name", "tokenizer", "steps", "message"),
    [
        (
            "qwen2.5-math-prm",
            qwen_tokenizer,
            ("fine", "a <extra_0> inside"),
            r"prm.jsonl:7: .*'<extra_0>' must stand once.*got 3 for 2.*step 2",
        ),
        ("math-shepherd", mistral_tokenizer, ("a ки b", "c"), r"'ки' must stand once.*got 3 for 2 steps.*step 1"),
        ("rlhflow-llama", llama3_tokenizer, ("a\ue000", "b"), "U\\+E000"),
    ],
)
def test_a_step_that_holds_or_swallows_the_marker_is_an_error(name, tokenizer, steps, message):
    """The place, the marker and the step are named; nothing is read at a guessed position."""
    layout = SolutionLayout(tokenizer(), spec(name))
    with pytest.raises(DataFormatError, match=message):
        layout.lay_out("Q", steps, place="prm.jsonl:7")


def test_a_marker_that_the_tokenizer_merges_with_a_step_is_an_error():
    """Five line breaks right after a step that ends with one become other tokens; the step is named."""
    tight = replace(spec("openr-math-psa"), step="{step}{marker}", marker_id=1406)
    layout = SolutionLayout(qwen_tokenizer(), tight)
    assert layout.lay_out("Q", ("a", "b")).token_ids.count(1406) == 2
    with pytest.raises(DataFormatError, match=r"solution: the marker .* of step 2 must be a token of its own"):
        layout.lay_out("Q", ("a", "b\n"))


def test_a_word_that_ends_like_the_marker_is_no_marker():
    """In 'руки' the marker's letters are another token, so Math-Shepherd's reading is not disturbed."""
    tokenizer = mistral_tokenizer()
    layout = SolutionLayout(tokenizer, spec("math-shepherd")).lay_out("Q", ("руки", "b"))
    assert [layout.token_ids[read] for read in layout.reads if read is not None] == [12902, 12902]
    assert 11000 in layout.token_ids


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_logit_gap_of_forty_keeps_its_score_in_half_precision(tmp_path, dtype):
    """A head that gives exactly -20 and +20 scores 1 - e^-40 or e^-40, not 0 or a rounding error."""
    save_head_model(tmp_path, qwen_tokenizer(), head="linear", num_outputs=2)
    reader = load_reader(tmp_path, spec("trl"), dtype=dtype)
    model = reader._reading._model._flat._model
    for sign, expected in ((1.0, np.exp(-40.0)), (-1.0, 1.0)):
        with torch.no_grad():
            model.score.weight.zero_()
            model.score.bias = torch.nn.Parameter(torch.tensor([20.0, -20.0], dtype=model.dtype) * sign)
        reader.reset()
        assert reader.score([Solution(question="Q", steps=("a",))])[0][0] == pytest.approx(expected, rel=1e-9)


def test_bins_are_read_as_their_mean():
    """Two bins have centres 1/4 and 3/4; logits (0, ln 3) give weights 1/4 and 3/4, so 5/8; huge logits do not overflow."""
    binned = PRMSpec(bins=2, transform="identity", renderer_hash="0")
    outputs = np.array([[0.0, np.log(3.0)], [1000.0, -1000.0]])
    np.testing.assert_allclose(scores_of(outputs, binned), [0.625, 0.25])


def test_models_and_tokenizers_that_do_not_fit_a_spec_are_named(tmp_path):
    """A foreign tokenizer, a head of another width, a model without a head, a missing model and an unknown spec are one sentence each."""
    save_head_model(tmp_path / "one", qwen_tokenizer(), head="v_head", num_outputs=1)
    save_language_model(tmp_path / "lm", llama3_tokenizer(), arch="llama")
    with pytest.raises(CheckpointError, match="must have 2 outputs per token: got 1"):
        load_reader(tmp_path / "one", spec("qwen2.5-math-prm"))
    with pytest.raises(CheckpointError, match="'▁-' must have id 387: got None"):
        load_reader(tmp_path / "lm", spec("math-shepherd"))
    with pytest.raises(CheckpointError, match="must have a head"):
        load_reader(tmp_path / "lm", spec("trl"))
    with pytest.raises(CheckpointError, match="marker '<extra_0>' must be the token 151651"):
        SolutionLayout(llama3_tokenizer(), spec("qwen2.5-math-prm"))
    with pytest.raises(CheckpointError, match="chat template"):
        SolutionLayout(mistral_tokenizer(), spec("qwen2.5-math-prm"))
    with pytest.raises(ConfigError, match=r"must be a .json file or one of .*trl.*got 'nope'"):
        resolve_spec(tmp_path, "nope")
    with pytest.raises(ConfigError, match="give --spec"):
        resolve_spec(tmp_path)
    with pytest.raises(ConfigError, match="policy's own tokens"):
        SolutionLayout(qwen_tokenizer(), PRMSpec(renderer_hash="0"))


def test_specs_are_found_by_directory_and_by_hub_id(tmp_path):
    """A saved spec comes back equal; every public checkpoint has one spec; the first version of the file still means what it said."""
    spec("math-shepherd").save(tmp_path)
    assert resolve_spec(tmp_path) == resolve_spec("anything", str(tmp_path / SPEC_FILE)) == spec("math-shepherd")
    ids = [hub_id for entry in NAMED_SPECS.values() for hub_id in entry.checkpoints]
    assert len(ids) == len(set(ids))
    assert resolve_spec("Qwen/Qwen2.5-Math-PRM-7B") == spec("qwen2.5-math-prm")
    (tmp_path / SPEC_FILE).write_text(
        '{"schema_version": 1, "family": "value-head", "read": "step-end", "transform": "tanh01", "renderer_hash": "ab"}'
    )
    assert PRMSpec.load(tmp_path) == PRMSpec(transform="tanh01", renderer_hash="ab")
    third = asdict(spec("implicit")) | {"schema_version": 3}
    for name in ("body", "heads", "head_file", "center", "width", "opening", "verdict_after"):
        del third[name]
    (tmp_path / SPEC_FILE).write_text(json.dumps(third))
    assert PRMSpec.load(tmp_path) == spec("implicit")


@pytest.mark.parametrize(
    "fields",
    [
        {"family": "vocabulary", "prompt": "plain", "read": "marker", "marker": "x"},
        {"prompt": "plain", "read": "marker"},
        {"prompt": "tokens", "read": "marker", "marker": "x"},
        {"prompt": "turns", "read": "piece-end"},
        {"prompt": "turns", "read": "text-end"},
        {"family": "value-head", "prompt": "plain", "transform": "difference"},
        {"family": "two-class", "prompt": "plain", "heads": 2},
        {"family": "implicit", "prompt": "chat", "read": "marker", "marker": "x"},
        {"bins": 8},
        {"beta": 0.0},
        {"family": "judge", "good": "a", "bad": "b", "prompt": "chat"},
        {"family": "judge", "good": "a", "bad": "b", "prompt": "chat", "verdict": "("},
        {"family": "judge", "good": "a", "bad": "b", "prompt": "chat", "verdict": "(yes)|(no)"},
        {"family": "nonsense"},
        {"beta": "0.05"},
        {"num_verdicts": 2.5},
        {"num_verdicts": 65_537},
        {"heads": 10**400},
        {"bins": 10**30},
        {"beta": 10**400},
        {"beta": float("inf")},
        {"center": float("nan")},
        {"marker_id": 10**30},
        {"marker": None},
    ],
)
def test_specs_that_contradict_themselves_are_refused(fields):
    """Each says what it needs."""
    with pytest.raises(ConfigError, match=r"PRM spec: .* -- correct the spec"):
        PRMSpec(**fields)


def test_spec_files_that_cannot_be_used_are_named(tmp_path):
    """A field of another type, a contradiction, a version that is no number, and a directory in place of the file."""
    spec("judge").save(tmp_path)
    row = json.loads((tmp_path / SPEC_FILE).read_text())
    own = tmp_path / "own.json"
    for broken in ({"beta": "x"}, {"family": "implicit", "read": "marker"}, {"schema_version": [3]}):
        own.write_text(json.dumps(row | broken))
        with pytest.raises(CheckpointError, match=r"own\.json: "):
            PRMSpec.load(own)
    own.unlink()
    own.mkdir()
    with pytest.raises(CheckpointError, match=r"own\.json: "):
        PRMSpec.load(own)
