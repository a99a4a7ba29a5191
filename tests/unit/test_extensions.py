"""One of each thing that CONTRIBUTING.md says how to add, added to a copy of the package and used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "stepladder"

METHOD = {
    "mcts/presets/sampled_solutions.py": (
        "SAMPLING_ROWS = (\n",
        'SAMPLING_ROWS = (\n    row("pairs-of-draws", "Two draws a request.", source="ours", selection="sample", wave=2, '
        'answer_rule="majority"),\n',
    )
}
SELECTION_RULE = {
    "mcts/strategies/roots.py": '''
"""Draws from the root, like ``samples``, under a name of its own."""

from dataclasses import dataclass
from typing import ClassVar

from stepladder.mcts.strategies.samples import SampleStrategy
from stepladder.mcts.strategies.strategy import Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class Roots(Selection):
    TYPES: ClassVar[tuple[str, ...]] = ("roots",)
    DRAWS_SOLUTIONS: ClassVar[bool] = True
    type: str = "roots"

    def strategy(self, run):
        return SampleStrategy()
''',
    "mcts/presets/sampled_solutions.py": (
        "SAMPLING_ROWS = (\n",
        "from stepladder.mcts.strategies.roots import Roots\n\nSAMPLING_ROWS = (\n"
        '    row("roots", "Draws from the root.", source="ours", selection=Roots, answer_rule="majority"),\n',
    ),
}
LOSS = {
    "policy/preference_losses.py": (
        None,
        '''
def hinge_losses(chosen_logps, rejected_logps, *, ref_chosen_logps, ref_rejected_logps, beta=0.1, margin=1.0):
    """Return max(0, margin - beta m), with m as for ``dpo_losses``."""
    return (margin - beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))).clamp(min=0)
''',
    ),
    "policy/preference_settings.py": (
        "PairLoss = DPO",
        '''@dataclass(frozen=True, kw_only=True, slots=True)
class Hinge(_PairLoss):
    """A hinge."""

    function: ClassVar[str] = "hinge_losses"
    type: Literal["hinge"] = "hinge"
    """Name of the loss."""
    margin: Positive = 1.0
    """Where the loss ends, > 0."""


PairLoss = Hinge | DPO''',
    ),
}
PAIR_RULE = {
    "data/labels/pair_rules/none.py": '''
"""A rule that keeps no pair."""

from dataclasses import dataclass
from typing import Literal

from stepladder.data.labels.pairing import NO_SOURCES
from stepladder.data.labels.selection import Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class NoPairs:
    """No pair at all."""

    type: Literal["none"] = "none"
    """Name of the rule."""
    reason: str = "not wanted"
    """Why."""

    def select(self, records, sources=NO_SOURCES):
        """Drop every tree."""
        return Selection(rows=[], considered=len(records), dropped_by_reason={self.reason: len(records)})
''',
    "data/labels/pair_rules/__init__.py": (
        "PairRule = EvidencePairs",
        "from stepladder.data.labels.pair_rules.none import NoPairs\n\nPairRule = NoPairs | EvidencePairs",
    ),
}
PRM_FAMILY = {
    "prm/brevity.py": '''
"""A family of models that like short steps."""

from stepladder.prm.open import TextPRM


class Brevity:
    forwarded_tokens = 0

    def reset(self):
        pass

    def score(self, solutions, *, strict=True):
        return [tuple(1 / (1 + len(step)) for step in solution.steps) for solution in solutions]


def open_brevity(source, spec, access):
    """Open a model that needs no weights."""
    return TextPRM(spec=spec, load=Brevity)
''',
    "prm/families.py": (
        "FAMILIES: dict[str, Family] = {\n",
        'FAMILIES: dict[str, Family] = {\n    "brevity": Family(opener="stepladder.prm.brevity:open_brevity"),\n',
    ),
}
BACKEND = {
    "policy/backends/echo.py": '''
"""A policy that answers at once."""

from stepladder.testing import ScriptedPolicy, make_step
from stepladder.types import StopReason


def open_echo():
    """Return a policy whose solutions are one step."""
    return ScriptedPolicy(lambda prefix, index, seed: make_step("=2", stop_reason=StopReason.END))
''',
    "loops/config/models.py": ('Literal["transformers", "vllm", "openai"]', 'Literal["transformers", "vllm", "openai", "echo"]'),
    "loops/assembly/policies.py": (
        '    if config.policy.backend == "vllm":\n        return _vllm_policy',
        '    if config.policy.backend == "echo":\n        from stepladder.policy.backends.echo import open_echo\n\n'
        "        return open_echo()\n"
        '    if config.policy.backend == "vllm":\n        return _vllm_policy',
    ),
}
EXTENSIONS = {
    "a method": (METHOD, 1),
    "a selection rule": (SELECTION_RULE, 2),
    "a preference loss": (LOSS, 2),
    "a rule of pairs": (PAIR_RULE, 2),
    "a PRM family": (PRM_FAMILY, 2),
    "a policy backend": (BACKEND, 3),
}
"""What is added: files of the package, new ones as text, others as (before, after), and how many files that may cost."""

TASK = '''
"""A task of one's own: an answer is right if it is the question's digits added up."""

from stepladder.types import Verdict


class Sums:
    def __init__(self, problems, base):
        self.problems, self.base = {each.problem.id: each.problem.question for each in problems}, base

    def grade(self, answers):
        right = [answer is not None and int(answer, self.base) == sum(map(int, self.problems[name].split("+"))) for name, answer in answers]
        return [Verdict(correct=each, reason="sum") for each in right]


def make(problems, *, base=10):
    return Sums(problems, base)
'''

USE = """
import torch
from pathlib import Path
from stepladder import Budget, LabelledProblem, Problem, Provenance, SearchEngine, load_config, resolve_method
from stepladder.loops.assembly.policies import build_policy
from stepladder.loops.assembly.problems import build_verifier
from stepladder.policy.preference_settings import PREFERENCE_LOSSES, loss_function
from stepladder.prm.open import open_prm
from stepladder.prm.specs import PRMSpec
from stepladder.testing import CharRenderer

REQUIRED = ["problems.train=p.jsonl", "problems.test=p.jsonl", "policy.model=model"]
config = load_config(None, [*REQUIRED, "policy.backend=echo", "problems.verifier=sums:make", "problems.verifier_options={base=2}",
    "labels.pairs.type=none", "labels.pairs.reason=too few", "preference.loss.type=hinge", "preference.loss.margin=2.0"])

problem = Problem(id="1", question="1+1")
provenance = Provenance(round=0, policy_version=0, scorer_version=None, seed=0, config_hash="-", renderer_hash="-")
for method in ("pairs-of-draws", "roots"):
    engine = SearchEngine(policy=build_policy(config, None, "model"), scorer=None, renderer=CharRenderer(), method=resolve_method(method),
        budget=Budget(num_simulations=4), provenance=provenance)
    (result,) = engine.search([problem])
    print(method, result.answer, result.tree.num_simulations)

pairs = config.labels.pairs.select([result.tree])
print("pairs", pairs.kept, pairs.dropped_by_reason)
logps = torch.tensor([0.0]), torch.tensor([-3.0])
loss = loss_function(config.preference.loss)(*logps, ref_chosen_logps=torch.zeros(1), ref_rejected_logps=torch.zeros(1), beta=0.5,
    margin=config.preference.loss.margin)
print("loss", type(config.preference.loss) is PREFERENCE_LOSSES["hinge"], loss.tolist())
with build_verifier(config.problems, [LabelledProblem(problem=problem, answer="")]) as verifier:
    print("verdicts", [verdict.correct for verdict in verifier.grade([("1", "10"), ("1", "11"), ("1", None)])])
Path("prm").mkdir()
PRMSpec(family="brevity", prompt="plain").save(Path("prm"))
"""
SCORE = ["prm", "score", "in.jsonl", "--model", "prm", "--output", "out.jsonl"]


def apply(package: Path, files: dict[str, str | tuple[str | None, str]]) -> None:
    """Write new files, and change each of the others in one place."""
    for name, change in files.items():
        path = package / name
        if isinstance(change, str):
            assert not path.exists()
            path.write_text(change)
            continue
        text, (before, after) = path.read_text(), change
        if before is None:
            path.write_text(text + "\n" + after)
        else:
            assert text.count(before) == 1, (name, before)
            path.write_text(text.replace(before, after))


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """Add everything to a copy of the package, use it, and give what was printed."""
    place = tmp_path_factory.mktemp("extended")
    shutil.copytree(PACKAGE, place / "stepladder", ignore=shutil.ignore_patterns("__pycache__"))
    for files, _ in EXTENSIONS.values():
        apply(place / "stepladder", files)
    (place / "sums.py").write_text(TASK)
    (place / "in.jsonl").write_text('{"question": "Q", "steps": ["a", "bcd"]}\n')
    options = {"cwd": place, "env": {**os.environ, "PYTHONPATH": str(place)}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", USE], **options, check=False)
    assert done.returncode == 0, done.stderr
    scored = subprocess.run([sys.executable, "-m", "stepladder", *SCORE], **options, check=False)
    assert scored.returncode == 0, scored.stderr
    return [*done.stdout.splitlines(), (place / "out.jsonl").read_text()]


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_extension_costs_few_files(name):
    """As many as CONTRIBUTING.md says."""
    files, most = EXTENSIONS[name]
    assert len(files) <= most


def test_a_new_method_and_a_new_selection_rule_search(used):
    """Both draw solutions of the new backend, whose answer is 2."""
    assert used[:2] == ["pairs-of-draws 2 4", "roots 2 4"]


def test_a_new_rule_of_pairs_and_a_new_loss_are_settings(used):
    """With settings of their own, by name, from the configuration: max(0, 2 - 0.5 * 3) = 0.5."""
    assert used[2] == "pairs 0 {'too few': 1}"
    assert used[3] == "loss True [0.5]"


def test_a_task_of_your_own_needs_no_change_of_the_package(used):
    """A verifier by its dotted path, with an option: 1 + 1 is 10 in base 2."""
    assert used[4] == "verdicts [True, False, False]"


def test_a_new_prm_family_scores_written_solutions(used):
    """From the command line: 1 / (1 + length)."""
    assert '"scores": [0.5, 0.25]' in used[5]
