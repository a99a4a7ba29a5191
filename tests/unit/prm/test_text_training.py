"""Training on labelled solutions: rows, groups, objectives, and models that learn and are read as they were trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.lm.settings import LoraSettings, TrainSettings
from stepladder.prm.layout import SolutionLayout
from stepladder.prm.objective import StepObjective
from stepladder.prm.reader import Solution
from stepladder.prm.specs import NAMED_SPECS, PRMSpec
from stepladder.prm.target_rows import collate_groups, collate_values
from stepladder.prm.text_training import LabelledSolution, group_solutions, step_rows, train_stepwise
from stepladder.prm.value_losses import bce_loss, mse_loss, pairwise_loss
from tests.prm_models import llama3_tokenizer, mistral_tokenizer, qwen_tokenizer, save_head_model, save_language_model
from tests.prms import load_reader

SETTINGS = TrainSettings(learning_rate=1e-2, epochs=6.0, batch_size=16, schedule="constant", device="cpu")
NAN = float("nan")


def spec(name):
    return NAMED_SPECS[name].spec


def labelled(*steps, question="Q", place="solution"):
    texts, labels = zip(*steps, strict=True)
    return LabelledSolution(solution=Solution(question=question, steps=texts, place=place), labels=labels)


def toy(num_solutions, seed=0):
    """Return solutions whose steps with an exclamation mark are bad, which a tiny model can learn."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(num_solutions):
        bad = rng.random(3) < 0.5
        made.append(labelled(*[(f"{rng.integers(10, 99)}{'!' if b else '.'}", 1.0 - float(b)) for b in bad], question=f"P{number}"))
    return made


def scores(directory, solutions, reader_spec):
    reader = load_reader(directory, reader_spec)
    return [list(each) for each in reader.score([each.solution for each in solutions])]


def accuracy(directory, solutions, reader_spec):
    pairs = [
        (score > 0.5, label == 1.0)
        for each, got in zip(solutions, scores(directory, solutions, reader_spec), strict=True)
        for score, label in zip(got, each.labels, strict=True)
    ]
    return np.mean([said == meant for said, meant in pairs])


def test_step_rows_carry_targets_where_the_reader_reads():
    """Steps without a label are context, tokens after the last label are left out, and what is dropped is counted."""
    layout, dropped = SolutionLayout(qwen_tokenizer(), spec("qwen2.5-math-prm")), {}
    rows = step_rows([labelled(("a", 1.0), ("b", None), ("c", 0.25), ("d", None)), labelled(("e", None))], layout, dropped=dropped)
    laid = layout.lay_out("Q", ("a", "b", "c", "d"))
    assert [(rows[0].positions, rows[0].targets)] == [([laid.reads[0], laid.reads[2]], [1.0, 0.25])]
    assert rows[0].ids == list(laid.token_ids[: laid.reads[2] + 1])
    assert dropped == {"no label": 1}


def test_group_rows_gather_what_continues_the_same_beginning():
    """Alternatives after 'a' are one group; equal labels, single steps and repeated steps are counted, not compared."""
    layout, dropped = SolutionLayout(qwen_tokenizer(), spec("ppm")), {}
    solutions = [
        labelled(("a", None), ("b", 1.0), ("x", 1.0)),
        labelled(("a", None), ("c", 0.0)),
        labelled(("a", None), ("b", 1.0)),
        labelled(("a", None), ("d", 0.5)),
        labelled(("a", None), ("", 0.0)),
        labelled(("a", None), ("b", 0.0), question="R"),
    ]
    rows = group_solutions(solutions, layout, dropped=dropped)
    assert [row.targets for row in rows] == [[1.0, 0.0, 0.5]]
    assert rows[0].paths[1] == list(layout.lay_out("Q", ("a", "c")).token_ids)
    assert dropped == {"repeated step": 1, "beginning without steps to compare": 2, "label on a step without tokens": 1}


@pytest.mark.parametrize(
    ("solutions", "message"),
    [
        ([labelled(("a", 1.0)), labelled(("b", 1.0))], "labels must differ: got 1.0 only"),
        ([labelled(("a", NAN), place="f.jsonl:3")], r"f.jsonl:3: the label of step 1 must be in \[0, 1\]: got nan"),
        ([labelled(("a", 1.5))], "got 1.5"),
        ([LabelledSolution(solution=Solution(question="Q", steps=("a", "b")), labels=(1.0,))], "got 1 for 2 steps"),
        ([labelled(("a <extra_0>", 1.0))], "must stand once after every step"),
        ([labelled(("a", None))], "labels must differ: got none"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(solutions, message):
    """One class, out of range, not a number, too few, or a step that holds the marker."""
    with pytest.raises(DataFormatError, match=message):
        step_rows(solutions, SolutionLayout(qwen_tokenizer(), spec("qwen2.5-math-prm")), dropped={})


def test_nothing_to_compare_is_refused():
    """Solutions that share no beginning give no pairs."""
    with pytest.raises(DataFormatError, match="same beginning: got none"):
        group_solutions(
            [labelled(("a", 1.0)), labelled(("a", 0.0), question="R")], SolutionLayout(qwen_tokenizer(), spec("ppm")), dropped={}
        )


class Fixed(torch.nn.Module):
    """A model whose logits are a table over token ids."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Parameter(table)

    def forward(self, input_ids, use_cache):
        return type("Output", (), {"logits": self.table[input_ids]})


def test_objectives_read_the_outputs_that_the_reader_reads():
    """On hand-made batches the objective is the loss of the gaps at the read positions: two classes, chosen columns, and groups."""
    table = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    layout = SolutionLayout(qwen_tokenizer(), spec("trl"))
    row = step_rows([labelled(("a", 1.0), ("b", 0.0))], layout, dropped={})[0]
    row = replace(row, ids=[token % 20 for token in row.ids])
    batch = collate_values([row])
    at = [row.ids[position] for position in row.positions]
    two, columns = Fixed(table[:, :2].clone()), Fixed(table.clone())
    for model, objective, gap in (
        (two, StepObjective(loss_name="bce", spec=spec("trl")), table[at, 1] - table[at, 0]),
        (columns, StepObjective(loss_name="bce", spec=spec("math-shepherd"), columns=(4, 2)), table[at, 2] - table[at, 4]),
    ):
        expected = bce_loss(gap, torch.tensor([1.0, 0.0]))
        torch.testing.assert_close(objective.loss(model, batch, objective.counts(batch)), expected)
    groups = group_solutions(
        [labelled(("a", 1.0)), labelled(("b", 0.0)), labelled(("c", 0.5))], SolutionLayout(qwen_tokenizer(), spec("ppm")), dropped={}
    )
    groups = [replace(group, paths=[[token % 20 for token in path] for path in group.paths]) for group in groups]
    batch = collate_groups([*groups, *groups])
    one = Fixed(table[:, :1].clone())
    objective = StepObjective(loss_name="pairwise+mse", spec=spec("ppm"), regression_weight=2.0)
    ends, targets = table[[path[-1] for path in groups[0].paths], 0], torch.tensor([1.0, 0.0, 0.5])
    expected = pairwise_loss(ends[None], targets[None]) + 2.0 * mse_loss((ends.tanh() + 1) / 2, targets)
    torch.testing.assert_close(objective.loss(one, batch, objective.counts(batch)), expected)
    halves = [objective.loss(one, collate_groups(groups), objective.counts(batch)) for _ in range(2)]
    torch.testing.assert_close(sum(halves), expected)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("qwen2.5-math-prm", "bce"),
        ("math-shepherd", "bce"),
        ("rlhflow-llama", "bce"),
        ("skywork-o1-open-prm", "mse"),
        ("skywork-o1-open-prm", "hl-gauss"),
        ("skywork-o1-open-prm", "two-hot"),
    ],
)
def test_every_family_learns_and_is_read_as_it_was_trained(tmp_path, name, loss):
    """From a policy without a head: bad steps of unseen solutions are told from good ones, by the reader on the saved directory."""
    tokenizer = {"math-shepherd": mistral_tokenizer, "rlhflow-llama": llama3_tokenizer}.get(name, qwen_tokenizer)()
    policy = save_language_model(tmp_path / "policy", tokenizer, arch="llama" if name == "rlhflow-llama" else "qwen2")
    chosen = replace(spec(name), bins=8, transform="identity") if loss in ("hl-gauss", "two-hot") else spec(name)
    report = train_stepwise(policy, toy(96), tmp_path / "out", SETTINGS, spec=chosen, loss=loss)
    assert report.last_loss < report.first_loss
    assert PRMSpec.load(tmp_path / "out") == chosen
    assert accuracy(tmp_path / "out", toy(24, seed=1), chosen) > 0.9


def test_pairwise_training_orders_siblings(tmp_path):
    """From alternatives after the same beginning the preference model learns which one is better."""
    policy = save_language_model(tmp_path / "policy", qwen_tokenizer())
    rng = np.random.default_rng(0)

    def pairs(count):
        return [
            labelled((f"{rng.integers(10, 99)}{mark}", value), question=f"P{i}")
            for i in range(count)
            for mark, value in ((".", 1.0), ("!", 0.0))
        ]

    train_stepwise(policy, pairs(64), tmp_path / "out", SETTINGS, spec=spec("ppm"), loss="pairwise")
    fresh = pairs(20)
    got = scores(tmp_path / "out", fresh, spec("ppm"))
    assert np.mean([good[0] > bad[0] for good, bad in zip(got[::2], got[1::2], strict=True)]) > 0.9


def test_head_only_adapters_and_two_stages(tmp_path):
    """The head alone leaves the body's bytes; adapters and two stages change it; a trained model goes on under its own spec only."""
    start = save_head_model(tmp_path / "start", qwen_tokenizer(), head="mlp", num_outputs=2)
    short = replace(SETTINGS, epochs=1.0, max_updates=2, batch_size=4)
    chosen = spec("qwen2.5-math-prm")
    from safetensors.torch import load_file

    before = load_file(start / "model.safetensors")
    changed = {}
    for name, settings, options in (
        ("head", short, {"scope": "head"}),
        ("lora", replace(short, lora=LoraSettings(r=4)), {}),
        ("stages", short, {"head_first": 0.5}),
    ):
        train_stepwise(start, toy(16), tmp_path / name, settings, spec=chosen, **options)
        after = load_file(tmp_path / name / "model.safetensors")
        assert set(after) == set(before)
        changed[name] = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"head": {"score"}, "lora": {"score", "model"}, "stages": {"score", "model"}}
    assert not (tmp_path / "stages.head").exists()
    assert len(scores(tmp_path / "head", toy(2), chosen)) == 2
    with pytest.raises(DataFormatError, match="under its own spec"):
        train_stepwise(tmp_path / "head", toy(4), tmp_path / "again", short, spec=spec("trl"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("trl", {"loss": "nonsense"}, "loss must be one of"),
        ("trl", {"loss": "hl-gauss"}, "bins must go together"),
        ("ppm", {"loss": "bce"}, "needs scores that are a sigmoid"),
        ("implicit", {}, "trained on labelled steps: got 'implicit'"),
        ("trl", {"scope": "tail"}, "scope must be"),
        ("trl", {"head_first": 1.0, "scope": "head"}, "head_first"),
    ],
)
def test_choices_that_do_not_fit_each_other_are_refused(tmp_path, name, options, message):
    """Before anything is loaded."""
    with pytest.raises(ConfigError, match=message):
        train_stepwise(tmp_path / "nowhere", toy(4), tmp_path / "out", SETTINGS, spec=spec(name), **options)


def test_a_head_that_shares_its_weights_cannot_be_trained_alone(tmp_path):
    """A language model whose head is its embeddings has no head of its own."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = qwen_tokenizer()
    config = Qwen2Config(
        vocab_size=151652, hidden_size=32, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, intermediate_size=32
    )
    config.tie_word_embeddings = True
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "tied")
    tokenizer.save_pretrained(tmp_path / "tied")
    with pytest.raises(CheckpointError, match="must have own weights"):
        train_stepwise(tmp_path / "tied", toy(4), tmp_path / "out", SETTINGS, spec=spec("openr-math-psa"), scope="head")
