"""TRL trains on the exports as they stand, and token ids train to the losses of the text."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepladder.data.exports.dataset import ExportJob, export_dataset
from stepladder.data.exports.formats import EXPORT_FORMATS
from stepladder.data.exports.rows import ExportSource
from stepladder.data.store import write_records
from stepladder.lm.loading import load_causal_lm, load_tokenizer
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.types import PreferencePair, Problem, Provenance, Trace, TreeRecord
from tests.models import save_tiny_policy

pytestmark = pytest.mark.slow

PROVENANCE = Provenance(round=1, policy_version=0, scorer_version=None, seed=5, config_hash="c" * 16, renderer_hash="r" * 16)
QUESTIONS = {f"p{number}": f"{number}+1+1" for number in range(4)}
SOURCE = ExportSource(questions=QUESTIONS)
CHAT_TEMPLATE = (
    "{% for message in messages %}|{{ message.role }}:{{ message.content }}{% if message.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}|assistant:{% endif %}"
)
Dataset = Any


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer has single characters and a chat template."""
    directory = save_tiny_policy(tmp_path_factory.mktemp("model"))
    tokenizer = load_tokenizer(directory)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def exported(tmp_path: Path, model_dir: Path) -> Callable[..., Dataset]:
    """Export four problems in a format and load the data set."""
    import datasets

    tokenizer = load_tokenizer(model_dir)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def run(format: str, source: ExportSource = SOURCE) -> Dataset:
        records = [_record(EXPORT_FORMATS[format].kind.name, problem_id, encode, tokenizer.eos_token_id) for problem_id in QUESTIONS]
        write_records(tmp_path / "shard", records, EXPORT_FORMATS[format].kind)
        export_dataset([tmp_path / "shard"], ExportJob(format=format, source=source), tmp_path / format)
        return datasets.load_dataset(str(tmp_path / format), split="train", cache_dir=str(tmp_path / "cache"))

    return run


def _record(kind: str, problem_id: str, encode: Callable[[str], list[int]], eos: int) -> PreferencePair | Trace | TreeRecord:
    """Return a row of a problem, as sampled by a policy that ends its solutions with the end-of-sequence token."""
    question = QUESTIONS[problem_id]
    prompt = encode(f"{question}\n")
    first, right, wrong = "1+1=2\n", f"2+{question[0]}=7\n", f"2+{question[0]}=49\n"
    if kind == "pairs":
        return PreferencePair(
            problem_id=problem_id,
            prompt_ids=prompt + encode(first),
            chosen_ids=encode(right),
            rejected_ids=encode(wrong),
            prompt=f"{question}\n{first}",
            chosen=right,
            rejected=wrong,
            chosen_value=0.9,
            rejected_value=0.2,
            depth=2,
            provenance=PROVENANCE,
        )
    if kind == "traces":
        return Trace(
            problem_id=problem_id,
            prompt_ids=prompt,
            completion_ids=[*encode(first + right), eos],
            prompt=question,
            completion=first + right,
            mean_value=0.75,
            provenance=PROVENANCE,
        )
    return TreeRecord(
        problem_id=problem_id,
        question=question,
        prompt_ids=prompt,
        method="mcts",
        parents=[-1, 0, 1, 1],
        depths=[0, 1, 2, 2],
        token_ids=[[], encode(first), [*encode(right), eos], [*encode(wrong), eos]],
        logps=[[], [-0.5] * len(first), [-0.5] * (len(right) + 1), [-0.5] * (len(wrong) + 1)],
        texts=["", first, right, wrong],
        priors=[1.0, 1.0, 0.5, 0.5],
        scores=[None] * 4,
        visits=[2, 2, 1, 1],
        values=[0.5, 0.5, 1.0, 0.0],
        stop_reasons=["step", "step", "end", "end"],
        answers=[None, None, "7", "49"],
        outcomes=[None, None, 1.0, 0.0],
        generated_tokens=30,
        policy_calls=2,
        scored_tokens=0,
        num_simulations=2,
        provenance=PROVENANCE,
    )


def train(trainer: type, config: type, data: Dataset, model_dir: Path, out: Path, **settings: Any) -> Any:
    """Train two updates on all rows and return the trainer; its loss is in the first entry of the history."""
    arguments = config(
        output_dir=str(out),
        per_device_train_batch_size=2,
        max_steps=2,
        logging_steps=1,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **settings,
    )
    model = load_causal_lm(model_dir, device="cpu")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    done = trainer(model=model, args=arguments, train_dataset=data, processing_class=load_tokenizer(model_dir))
    done.train()
    assert any((weight != before[name]).any() for name, weight in model.named_parameters())
    return done


def losses(trainer: Any) -> list[float]:
    """Return the losses of the updates."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def on_token_ids(trainer: type, names: dict[str, str], *kept: str) -> type:
    """Return a trainer that takes token ids instead of making them: the recipe of docs/exports.md."""

    def prepare(self: Any, dataset: Dataset, *arguments: Any, **options: Any) -> Dataset:
        return dataset.select_columns([*names, *kept]).rename_columns(names)

    return type(f"{trainer.__name__}OnTokenIds", (trainer,), {"_prepare_dataset": prepare})


PAIR_NAMES = {"prompt_token_ids": "prompt_ids", "chosen_token_ids": "chosen_ids", "rejected_token_ids": "rejected_ids"}


def test_dpo_on_text_and_on_ids(exported: Callable[..., Dataset], model_dir: Path, tmp_path: Path) -> None:
    """DPOTrainer makes of the text our token ids and an end-of-sequence token; with that token the ids train to the same losses."""
    from trl import DPOConfig, DPOTrainer

    data = exported("preference")
    text = train(DPOTrainer, DPOConfig, data, model_dir, tmp_path / "text")
    eos = load_tokenizer(model_dir).eos_token_id
    for made, row in zip(text.train_dataset, data, strict=True):
        assert made["prompt_ids"] == row["prompt_token_ids"]
        assert (made["chosen_ids"], made["rejected_ids"]) == (row["chosen_token_ids"] + [eos], row["rejected_token_ids"] + [eos])
    closed = data.map(lambda row: {name: row[name] + [eos] for name in ("chosen_token_ids", "rejected_token_ids")})
    trainer = on_token_ids(DPOTrainer, PAIR_NAMES)
    assert losses(train(trainer, DPOConfig, closed, model_dir, tmp_path / "closed")) == pytest.approx(losses(text), rel=1e-6)
    assert losses(train(trainer, DPOConfig, data, model_dir, tmp_path / "ids"))[0] == pytest.approx(0.6931, abs=1e-3)


def test_dpo_on_chats(exported: Callable[..., Dataset], model_dir: Path, tmp_path: Path) -> None:
    """DPOTrainer takes the chats; that the shared steps stand in the replies does not change its losses."""
    from trl import DPOConfig, DPOTrainer

    data = exported("preference-chat")
    chats = train(DPOTrainer, DPOConfig, data, model_dir, tmp_path / "chats")
    tokenizer = load_tokenizer(model_dir)
    assert tokenizer.decode(chats.train_dataset[1]["prompt_ids"]) == "|user:1+1+1\n|assistant:"
    assert tokenizer.decode(chats.train_dataset[1]["chosen_ids"]) == "1+1=2\n2+1=7\n<eos>"

    def move_shared_steps(row: dict[str, Any]) -> dict[str, Any]:
        shared = len(tokenizer.encode(row["shared_steps"], add_special_tokens=False))
        return {
            "prompt_token_ids": row["prompt_ids"] + row["chosen_ids"][:shared],
            "chosen_token_ids": row["chosen_ids"][shared:],
            "rejected_token_ids": row["rejected_ids"][shared:],
        }

    prepared = chats.train_dataset.map(move_shared_steps).remove_columns(list(PAIR_NAMES.values()))
    moved = train(on_token_ids(DPOTrainer, PAIR_NAMES), DPOConfig, prepared, model_dir, tmp_path / "moved")
    assert losses(chats) == pytest.approx(losses(moved), rel=1e-4)


def test_sft_on_text_chats_and_ids(exported: Callable[..., Dataset], model_dir: Path, tmp_path: Path) -> None:
    """SFTTrainer takes all three as they stand; text and ids have the same tokens, the same masks and the same losses."""
    from trl import SFTConfig, SFTTrainer

    text = train(SFTTrainer, SFTConfig, exported("sft"), model_dir, tmp_path / "text")
    ids = train(SFTTrainer, SFTConfig, exported("sft-ids"), model_dir, tmp_path / "ids")
    assert [(row["input_ids"], row["labels"]) for row in ids.train_dataset] == [
        (row["input_ids"], row["labels"]) for row in text.train_dataset
    ]
    assert losses(ids) == pytest.approx(losses(text), rel=1e-6)
    chats = train(SFTTrainer, SFTConfig, exported("sft-chat"), model_dir, tmp_path / "chats")
    tokenizer, row = load_tokenizer(model_dir), chats.train_dataset[2]
    assert tokenizer.decode(row["input_ids"]) == "|user:2+1+1\n|assistant:1+1=2\n2+2=7\n<eos>"
    assert tokenizer.decode([label for label in row["labels"] if label != -100]) == "1+1=2\n2+2=7\n<eos>"


def test_kto_on_text_and_on_ids(exported: Callable[..., Dataset], model_dir: Path, tmp_path: Path) -> None:
    """KTOTrainer takes the text, and the token ids train to the same losses."""
    from trl import KTOConfig, KTOTrainer

    data = exported("kto")
    assert data["label"] == [True, False] * 4
    loss = {"loss_type": "apo_zero_unpaired"}
    text = train(KTOTrainer, KTOConfig, data, model_dir, tmp_path / "text", **loss)
    names = {"prompt_token_ids": "prompt_ids", "completion_token_ids": "completion_ids"}
    ids = train(on_token_ids(KTOTrainer, names, "label"), KTOConfig, data, model_dir, tmp_path / "ids", **loss)
    assert losses(ids) == pytest.approx(losses(text), rel=1e-6)
    assert all(0 < loss < 10 for loss in losses(train(KTOTrainer, KTOConfig, data, model_dir, tmp_path / "kto")))


def test_problems_render_as_the_policy_saw_them(exported: Callable[..., Dataset], model_dir: Path, tmp_path: Path) -> None:
    """Verl and OpenRLHF put the messages through the chat template; the ids are those of a run with a chat template."""
    tokenizer = load_tokenizer(model_dir)
    step_format = StepFormat(chat=True, system="be brief", prompt_template="add: {question}")
    renderer = PromptRenderer(tokenizer, step_format)
    answers = dict.fromkeys(QUESTIONS, "7")
    source = ExportSource(
        questions=QUESTIONS, answers=answers, prompt_template=step_format.prompt_template, system=step_format.system, name="owner/sums"
    )
    for format in ("prompts", "trajectories", "sft-chat"):
        for row in exported(format, source):
            ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=False)
            question = QUESTIONS[row["problem_id"]]
            assert tuple(ids) == renderer.prompt_ids(Problem(id="-", question=question))
            if format != "sft-chat":
                assert (row["reward_model"], row["extra_info"]["question"]) == ({"style": "rule", "ground_truth": "7"}, question)


def test_rows_of_several_rounds_train_together(exported: Callable[..., Dataset], tmp_path: Path, model_dir: Path) -> None:
    """Rows with and without a PRM's version are one table with one type, in JSON as well."""
    import datasets

    encode = load_tokenizer(model_dir).encode
    records = [_record("trees", problem_id, lambda text: encode(text, add_special_tokens=False), 2) for problem_id in QUESTIONS]
    paths = [tmp_path / "first", tmp_path / "second"]
    write_records(paths[0], records, EXPORT_FORMATS["tree-json"].kind)
    later = replace(PROVENANCE, round=2, scorer_version=1)
    write_records(
        paths[1], [replace(record, scores=[None, 0.5, 0.5, 0.5], provenance=later) for record in records], EXPORT_FORMATS["tree"].kind
    )
    export_dataset(paths, ExportJob(format="tree-json", source=SOURCE), tmp_path / "out")
    data = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert data["scorer_version"] == [None] * 4 + [1] * 4
    assert data["scores"][4] == [None, 0.5, 0.5, 0.5]
