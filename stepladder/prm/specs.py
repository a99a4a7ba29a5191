"""Description of a process reward model as data: its input, the place of its output, and the meaning of the output.

A spec has three parts. *Prompt*: how a question and its steps become the model's input. *Read*: at which token of a step the output is
taken. *Family* and *transform*: what the output is, and the score it stands for. Another public model of a known family is another entry of
``NAMED_SPECS``, not another class; another family is a row of ``families.FAMILIES``.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from stepladder.errors import CheckpointError, ConfigError
from stepladder.files import atomic_write_text, read_json_object, reading
from stepladder.prm.families import FAMILIES

SPEC_FILE = "stepladder_prm.json"
"""File of a model directory with its ``PRMSpec``."""

SPEC_VERSION = 5
_VERSION_1 = {"family", "read", "transform", "renderer_hash"}
"""Fields of the first version; the others had the values of today's defaults."""
_NEW_IN_VERSION_5 = {"heads", "head_file", "center", "width", "opening", "verdict_after"}
_NEW_IN_VERSION_4 = {"body"} | _NEW_IN_VERSION_5
_NEW_IN_VERSION_3 = {"accumulate", "reference"} | _NEW_IN_VERSION_4
_MOST = 1 << 16
"""Largest number of heads, bins or verdicts: each costs memory or time, and a damaged file may hold any number."""
_TOO_LARGE = 1 << 63

Prompt = Literal["tokens", "plain", "chat", "turns"]
Read = Literal["step-end", "before-end", "piece-end", "marker", "before-marker", "text-end"]
Transform = Literal["sigmoid", "tanh01", "identity", "difference"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PRMSpec:
    """How to read scores from a model. It is stored with the model, so that training and serving agree.

    Templates hold ``{question}``, ``{step}`` and ``{marker}``; nothing else in them is replaced, so braces need no escape.
    """

    family: str = "value-head"
    """A name of ``families.FAMILIES``. ``value-head``: one linear output, or ``bins`` of them, on every token. ``two-class``: two outputs
    on every token, the second for a good step. ``vocabulary``: a language model's logits of two tokens, ``good`` and ``bad``.
    ``implicit``: log-ratio of two language models. ``surprisal``: how close a step's -log p under a language model is to a wanted one.
    ``judge``: a language model writes verdicts. ``probe``: a value head on the hidden states of the policy that ``body`` names."""
    prompt: Prompt = "tokens"
    """``tokens``: the policy's own prompt and step tokens, as sampled. ``plain``: text. ``chat``: user asks, assistant gives all steps.
    ``turns``: the user gives the steps one by one, the assistant answers each with the marker."""
    read: Read = "step-end"
    """``step-end``: at the last token of the step. ``before-end``: at the token before it, whose pass samples it. ``piece-end``: as
    ``step-end``, question, steps and markers being encoded each by itself. ``marker``: at the marker's token. ``before-marker``: at the
    token before it, which predicts it. ``text-end``: at the last token of a text of its own, with all steps so far, as a model reads that
    was trained on whole solutions."""
    transform: Transform = "sigmoid"
    """From output x to score: ``sigmoid`` 1 / (1 + exp(-x)); ``tanh01`` (tanh(x) + 1) / 2; ``identity`` x, clipped to [0, 1]. Of two
    outputs, x is good minus bad, so that ``sigmoid`` is the softmax over both. ``difference``: of two outputs, p(good) - p(bad), which lies
    in [-1, 1], as (p(good) - p(bad) + 1) / 2."""
    renderer_hash: str | None = None
    """Hash of the renderer whose prompts a ``tokens`` model was trained on; None for the others, whose prompt the spec says."""
    system: str | None = None
    """System message of a ``chat``; None leaves it to the chat template."""
    question: str = "{question}"
    """Text before the first step. Under ``turns`` it is the first turn, which also contains ``{step}``. For a ``judge`` it is the prompt,
    which may also contain ``{previous}``."""
    step: str = "{step}{marker}"
    """One step and its marker."""
    joiner: str = ""
    """Text between two steps."""
    marker: str = ""
    """Text of the marker."""
    marker_id: int | None = None
    """Token id of the marker; None asks the tokenizer."""
    good: str | None = None
    """Vocabulary entry of the token for a good step, or a judge's word for it."""
    good_id: int | None = None
    """Its token id; None asks the tokenizer."""
    bad: str | None = None
    """The same for a bad step."""
    bad_id: int | None = None
    """Its token id; None asks the tokenizer."""
    bos: bool = False
    """Under ``piece-end``, begin with the tokenizer's beginning-of-sequence token if it has one."""
    beta: float = 1.0
    """Factor on the log-ratio of an ``implicit`` model, > 0."""
    accumulate: bool = False
    """Whether an ``implicit`` model's log-ratio is summed from the first step on, which makes it a value of the path so far (Yuan et al.
    2024, proposition 3.1), instead of over the step alone."""
    reference: str | None = None
    """Reference of an ``implicit`` model: a hub id or a directory. A path that begins with a dot is relative to the model's directory. With
    None, the user must name the reference."""
    body: str | None = None
    """Policy whose hidden states a ``probe`` reads: a hub id or a directory, as for ``reference``."""
    center: float = 0.5
    """The surprisal s that a ``surprisal`` model likes best, mean -log p of a step's tokens in nats, >= 0."""
    width: float = 0.5
    """How far from it the score falls: exp(-(s - center)^2 / (2 width^2)), in nats, > 0."""
    heads: int = 1
    """Value heads, in [1, 65536]; with several, the score is the mean of their scores."""
    head_file: str | None = None
    """File of the model's directory that holds the head alone, as PyTorch saves a linear layer; None finds it among the weights."""
    bins: int = 1
    """Outputs of a value head, in [1, 65536]; with several, the output is the mean of equally spaced bin centres of [0, 1] under their
    softmax."""
    split: str = "\n\n"
    """Separator that splits a solution in one piece into steps."""
    num_verdicts: int = 1
    """Verdicts that a ``judge`` samples per step, in [1, 65536]."""
    verdict: str = ""
    """Regular expression that finds a judge's word. If it has a group, the group is the word. The last match counts."""
    opening: str = ""
    """Text with which every verdict of a ``judge`` begins; it continues from there. ``{number}`` is the number of the step, from 1."""
    verdict_after: str = ""
    """Text after which a ``judge`` says its word: the score is the probability of ``good`` among ``good`` and ``bad``. It follows the
    prompt at once, so that nothing is sampled; or, with an ``opening``, what the judge has written up to ``verdict``. Empty lets the judge
    write its word."""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ConfigError(f"PRM spec: family must be one of {list(FAMILIES)}: got {self.family!r} -- correct the spec")
        for each in fields(self):
            value, choices = getattr(self, each.name), get_args(each.type) if get_origin(each.type) is Literal else None
            if choices is not None and value not in choices:
                raise ConfigError(f"PRM spec: {each.name} must be one of {list(choices)}: got {value!r} -- correct the spec")
            kind: Any = int | float if each.type is float else each.type
            if choices is None and not isinstance(value, kind):
                name = getattr(kind, "__name__", kind)
                raise ConfigError(f"PRM spec: {each.name} must be of type {name}: got {value!r} -- correct the spec")
            if isinstance(value, int | float) and not abs(value) < _TOO_LARGE:
                raise ConfigError(f"PRM spec: {each.name} must be a number below 2**63 -- correct the spec")
        lacking = self._lacking()
        if lacking is not None:
            changed = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
            given = ", ".join(f"{name}={getattr(self, name)!r}" for name in changed) or "the defaults"
            raise ConfigError(f"PRM spec: needs {lacking}: got {given} -- correct the spec")

    def _lacking(self) -> str | None:
        """Name the first thing that the spec lacks; None if it is complete."""
        if self.read in ("marker", "before-marker") and not self.marker:
            return "a marker to read at"
        if self.prompt == "tokens" and self.read not in ("step-end", "before-end"):
            return "the read 'step-end' or 'before-end' for the prompt 'tokens'"
        if self.read == "before-end" and self.family != "probe":
            return "the family 'probe' for the read 'before-end'"
        if (self.family == "probe") != (self.body is not None):
            return "a body for the family 'probe', and for no other"
        if self.read == "piece-end" and self.prompt not in ("plain", "chat"):
            return "the prompt 'plain' or 'chat' for the read 'piece-end'"
        if self.prompt == "tokens" and not FAMILIES[self.family].reads_policy_tokens:
            return "a value head, two classes, an implicit model or a surprisal for the prompt 'tokens'"
        return self._lacks_numbers() or FAMILIES[self.family].lacks(self)

    def _lacks_numbers(self) -> str | None:
        """Name the first thing about outputs and numbers that the spec lacks."""
        if self.read == "text-end" and (self.prompt not in ("plain", "chat") or self.family in ("implicit", "surprisal")):
            return "the prompt 'plain' or 'chat', and a head, for the read 'text-end'"
        if self.transform == "difference" and self.num_outputs != 2:
            return "two outputs for the transform 'difference'"
        if self.beta <= 0 or not all(1 <= number <= _MOST for number in (self.bins, self.num_verdicts, self.heads)):
            return f"a positive beta, and bins, heads and num_verdicts from 1 to {_MOST}"
        if self.heads > 1 and (self.family != "value-head" or self.bins > 1):
            return "several heads on a value head without bins only"
        if self.bins > 1 and (self.family not in ("value-head", "probe") or self.transform != "identity"):
            return "bins on a value head with the transform 'identity' only"
        return None

    @property
    def num_outputs(self) -> int:
        """Outputs per token that make up the score."""
        return FAMILIES[self.family].num_outputs(self)

    @property
    def says_word_at_once(self) -> bool:
        """Whether a judge says its word right after the question, so that nothing is sampled."""
        return bool(self.verdict_after) and not self.opening

    def save(self, directory: str | Path) -> None:
        """Write the spec into a model directory."""
        atomic_write_text(Path(directory) / SPEC_FILE, json.dumps({"schema_version": SPEC_VERSION, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> "PRMSpec":
        """Read the spec of a model directory, or a spec that is a ``.json`` file by itself.

        Raises:
            CheckpointError: If it is missing, malformed or of another version.
        """
        path = Path(directory) if Path(directory).suffix == ".json" else Path(directory) / SPEC_FILE
        row = read_json_object(path, what="a spec of a PRM", remedy="use a directory that PRM training wrote, or save the spec again")
        version = row.pop("schema_version", None)
        names = {each.name for each in fields(cls)}
        fields_of = {
            1: _VERSION_1,
            2: names - _NEW_IN_VERSION_3,
            3: names - _NEW_IN_VERSION_4,
            4: names - _NEW_IN_VERSION_5,
            SPEC_VERSION: names,
        }
        if set(row) != fields_of.get(version if isinstance(version, int) else -1):
            raise CheckpointError(
                f"{path}: must be of version 1 to {SPEC_VERSION} with all its fields: got {version!r} with {sorted(row)} "
                "-- use the stepladder that wrote it"
            )
        try:
            with reading(path, what="a spec of a PRM", remedy="save the spec again"):
                return cls(**row)
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedSpec:
    """A spec that public checkpoints share."""

    spec: PRMSpec
    """How they are read."""
    summary: str
    """Description in one line."""
    checkpoints: tuple[str, ...] = ()
    """Hub ids of public models that are read so."""


NAMED_SPECS: dict[str, NamedSpec] = {
    "qwen2.5-math-prm": NamedSpec(
        summary="two classes at <extra_0> after every step of a chat",
        checkpoints=("Qwen/Qwen2.5-Math-PRM-7B", "Qwen/Qwen2.5-Math-PRM-72B", "Qwen/Qwen2.5-Math-7B-PRM800K"),
        spec=PRMSpec(
            family="two-class",
            prompt="chat",
            read="marker",
            system="Please reason step by step, and put your final answer within \\boxed{}.",
            marker="<extra_0>",
            marker_id=151651,
        ),
    ),
    "math-shepherd": NamedSpec(
        summary="logits of + and - at ки after every line",
        checkpoints=("peiyi9979/math-shepherd-mistral-7b-prm",),
        spec=PRMSpec(
            family="vocabulary",
            prompt="plain",
            read="marker",
            question="{question} ",
            step="{step} {marker}",
            joiner="\n",
            marker="ки",
            marker_id=12902,
            good="▁+",
            good_id=648,
            bad="▁-",
            bad_id=387,
            split="\n",
        ),
    ),
    "rlhflow-llama": NamedSpec(
        summary="logits of + and - where the assistant answers each step's turn",
        checkpoints=("RLHFlow/Llama3.1-8B-PRM-Deepseek-Data", "RLHFlow/Llama3.1-8B-PRM-Mistral-Data"),
        spec=PRMSpec(
            family="vocabulary",
            prompt="turns",
            read="before-marker",
            question="{question} {step}",
            step="{step}",
            marker="+",
            good="+",
            good_id=10,
            bad="-",
            bad_id=12,
        ),
    ),
    "openr-math-psa": NamedSpec(
        summary="logits of + and - at five line breaks after every step",
        checkpoints=("openreasoner/Math-psa",),
        spec=PRMSpec(
            family="vocabulary",
            prompt="plain",
            read="marker",
            question="{question} ",
            step="{step} {marker}",
            joiner=" ",
            marker="\n\n\n\n\n",
            marker_id=76325,
            good="Ġ+",
            good_id=488,
            bad="Ġ-",
            bad_id=481,
        ),
    ),
    "skywork-o1-open-prm": NamedSpec(
        summary="value head at the line break after every step, pieces encoded separately",
        checkpoints=("Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B", "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B"),
        spec=PRMSpec(family="value-head", prompt="plain", read="piece-end", question="{question}\n", marker="\n", bos=True, split="\n"),
    ),
    "trl": NamedSpec(
        summary="two classes at the line break after every step, as TRL's PRMTrainer trained token classifiers",
        spec=PRMSpec(family="two-class", prompt="plain", read="piece-end", marker="\n", bos=True, split="\n"),
    ),
    "ppm": NamedSpec(
        summary="value head with tanh at the end of every step, trained on pairs (rStar-Math's preference model)",
        spec=PRMSpec(family="value-head", prompt="plain", read="piece-end", transform="tanh01", question="{question}\n", bos=True),
    ),
    "implicit": NamedSpec(
        summary="beta times the log-ratio of each step to a reference model, through a sigmoid; needs --reference",
        checkpoints=("PRIME-RL/EurusPRM-Stage1", "PRIME-RL/EurusPRM-Stage2"),
        spec=PRMSpec(family="implicit", prompt="chat", read="step-end", joiner="\n\n", beta=0.001),
    ),
    "pure-prm": NamedSpec(
        summary="two classes at the line break after every step of a chat; p(good) - p(bad) as a share",
        checkpoints=("jinachris/PURE-PRM-7B",),
        spec=PRMSpec(family="two-class", prompt="chat", read="piece-end", transform="difference", marker="\n"),
    ),
    "head-ensemble": NamedSpec(
        summary="several value heads at <extra_0> after every step of a chat, as ActPRM has them; the mean of their scores",
        spec=PRMSpec(
            family="value-head",
            prompt="chat",
            read="marker",
            system="Please reason step by step, and put your final answer within \\boxed{}.",
            marker="<extra_0>",
            heads=2,
        ),
    ),
    "versaprm": NamedSpec(
        summary="logits of + and - at a space and four line breaks after every step",
        checkpoints=("UW-Madison-Lee-Lab/VersaPRM", "UW-Madison-Lee-Lab/Llama-PRM800K"),
        spec=PRMSpec(
            family="vocabulary",
            prompt="plain",
            read="marker",
            question="{question} \n\n",
            marker=" \n\n\n\n",
            marker_id=23535,
            good="+",
            good_id=10,
            bad="-",
            bad_id=12,
        ),
    ),
    "pqm": NamedSpec(
        summary="value head at the added token [PRM] after every step (process Q-value model)",
        checkpoints=("Windy0822/PQM",),
        spec=PRMSpec(
            family="value-head",
            prompt="plain",
            read="marker",
            question=(
                "Below is an instruction that describes a task.\nWrite a response that appropriately completes the request.\n\n"
                "### Instruction:\n{question}\n\n### Response: Let's think step by step\n"
            ),
            step="{step} {marker}",
            joiner="\n",
            marker="[PRM]",
        ),
    ),
    "reasonflux-prm-7b": NamedSpec(
        summary="two classes at <extra_0> after every step of a chat without a system message of its own",
        checkpoints=("Gen-Verse/ReasonFlux-PRM-7B",),
        spec=PRMSpec(family="two-class", prompt="chat", read="marker", marker="<extra_0>", marker_id=151651),
    ),
    "reasonflux-prm-1.5b": NamedSpec(
        summary="a value head in a file of its own, at the last token of the solution so far",
        checkpoints=("Gen-Verse/ReasonFlux-PRM-1.5B",),
        spec=PRMSpec(family="value-head", prompt="plain", read="text-end", joiner="\n\n", head_file="reward_head.pt"),
    ),
    "acemath-rm": NamedSpec(
        summary="one number at the end of a chat with the solution so far, without a transform there; its sigmoid here",
        checkpoints=("nvidia/AceMath-7B-RM", "nvidia/AceMath-72B-RM"),
        spec=PRMSpec(
            family="value-head",
            prompt="chat",
            read="text-end",
            system="Please reason step by step, and check your final answer within \\boxed{}.",
            joiner="\n\n",
        ),
    ),
    "thinkprm": NamedSpec(
        summary="a reasoning model reviews the solution so far step by step; the share of correct among its last verdicts",
        checkpoints=("launch/ThinkPRM-1.5B", "launch/ThinkPRM-7B", "launch/ThinkPRM-14B"),
        spec=PRMSpec(
            family="judge",
            prompt="chat",
            transform="identity",
            question=(
                "You are given a math problem and a proposed step-by-step solution:\n\n[Math Problem]\n\n{question}\n\n[Solution]\n\n"
                "{previous}\n\n{step}\n\nReview and critique each step in the proposed solution to determine whether each step is correct. "
                "If the solution is incomplete, only verify the provided steps."
            ),
            good="correct",
            bad="incorrect",
            verdict=r"\\boxed\{(correct|incorrect)\}",
            opening="Let's verify step by step:",
            num_verdicts=4,
        ),
    ),
    "genprm": NamedSpec(
        summary="a judge analyses a paragraph, then the probability of Yes is read after a forced closing; no code is run",
        checkpoints=("GenPRM/GenPRM-1.5B", "GenPRM/GenPRM-7B", "GenPRM/GenPRM-32B"),
        spec=PRMSpec(
            family="judge",
            prompt="chat",
            transform="identity",
            system="You are a math teacher. Your task is to review and critique the paragraphs in solution step by step.",
            question="Question: {question}\n\n{previous}\n\n{step}",
            good="Yes",
            bad="No",
            verdict=r"(</analyze>)",
            opening="<analyze>\nLet's analyze the Paragraph {number} step by step: ",
            verdict_after="\n<output>\n**Judgement**: $\\boxed{",
            num_verdicts=4,
        ),
    ),
    "surprisal": NamedSpec(
        summary="closeness of a step's mean -log p under a language model to a wanted surprisal (curiosity); any language model",
        spec=PRMSpec(family="surprisal", prompt="plain", question="{question}\n", joiner="\n"),
    ),
    "self-evaluation": NamedSpec(
        summary="a chat model's probability of Yes, said at once of every step",
        spec=PRMSpec(
            family="judge",
            prompt="chat",
            transform="identity",
            question=(
                "Problem:\n{question}\n\nSolution so far:\n{previous}\n\nNext step:\n{step}\n\n"
                "Is the next step right, given that the steps before it are right? Answer Yes or No."
            ),
            good="Yes",
            bad="No",
            verdict_after="Answer: ",
        ),
    ),
    "judge": NamedSpec(
        summary="a chat model says Yes or No to every step; the share of Yes among its verdicts",
        spec=PRMSpec(
            family="judge",
            prompt="chat",
            transform="identity",
            question=(
                "Problem:\n{question}\n\nSolution so far:\n{previous}\n\nNext step:\n{step}\n\n"
                "Check the next step, given that the steps before it are right. Reason briefly, then write \\boxed{Yes} if the step is "
                "right or \\boxed{No} if it is wrong."
            ),
            good="Yes",
            bad="No",
            verdict=r"\\boxed\{\s*(\w+)\s*\}",
            num_verdicts=8,
        ),
    ),
}
"""Specs by name; ``prm specs`` lists them."""


def resolve_reference(source: str | Path, spec: PRMSpec, given: str | Path | None = None) -> str:
    """Return the reference of an implicit model: the given one, else the one in its spec.

    Raises:
        ConfigError: If there is none.
    """
    if given:
        return str(given)
    named = spec.reference
    if named is None:
        raise ConfigError(
            f"{source}: an implicit model is read against a reference model: its spec names none -- give --reference, or set prm.reference"
        )
    return _seen_from(source, named)


def resolve_body(source: str | Path, spec: PRMSpec) -> str:
    """Return the policy whose hidden states a probe reads."""
    assert spec.body is not None, "a probe has one"
    return _seen_from(source, spec.body)


def _seen_from(source: str | Path, named: str) -> str:
    """Return a model that a spec names: a path that begins with a dot is relative to the directory of the spec."""
    return str(Path(source, named).resolve()) if named.startswith(".") else named


def check_reads_tokens(spec: PRMSpec) -> None:
    """Refuse a spec that reads text if only the policy's own tokens are available.

    Raises:
        ConfigError: If the prompt is not ``tokens``.
    """
    if spec.prompt != "tokens":
        raise ConfigError(f"PRM spec: must read the policy's tokens: got prompt {spec.prompt!r} -- score or train on text instead")


def resolve_spec(source: str | Path, name: str | None = None) -> PRMSpec:
    """Return the spec of a model, from a spec's name, from its directory, or from its hub id.

    Args:
        source: Model directory or hub id.
        name: A name of ``NAMED_SPECS``, the path of a ``.json`` file with a spec, or None.

    Raises:
        CheckpointError: If the spec in the directory is malformed.
        ConfigError: If the name is unknown, or the model has no spec.
    """
    if name is not None and name.endswith(".json"):
        return PRMSpec.load(name)
    if name is not None:
        if name not in NAMED_SPECS:
            raise ConfigError(f"--spec: must be a .json file or one of {', '.join(sorted(NAMED_SPECS))}: got {name!r} -- see prm specs")
        return NAMED_SPECS[name].spec
    if (Path(source) / SPEC_FILE).is_file():
        return PRMSpec.load(source)
    for entry in NAMED_SPECS.values():
        if str(source) in entry.checkpoints:
            return entry.spec
    if not Path(source).is_dir():
        raise ConfigError(
            f"{source}: must be a model directory, or the hub id of a model that a named spec lists: it is neither -- correct the path, or "
            "give --spec, or set prm.spec (see stepladder prm specs)"
        )
    raise ConfigError(
        f"{source}: how its scores are read must be known: there is no {SPEC_FILE} -- give --spec, or set prm.spec "
        "(see stepladder prm specs)"
    )
