"""The HTML page: its figures, its escaping, its independence of everything outside, on whole and on odd runs."""

import base64
import hashlib
import io
import json
import re
import tomllib
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from stepladder.loops.config.run import Config
from stepladder.loops.runs.directory import load_run
from stepladder.loops.runs.results import LabelCounts, RoundRow, RoundTraining, RowCounts
from stepladder.report import sections
from stepladder.report.markup import Markup, html, table
from stepladder.report.notebook import tree_html
from stepladder.report.page import document, json_block, render_page, write_report
from stepladder.report.watch import watch_run
from stepladder.toml_text import as_toml
from tests.report_run import HOSTILE, SEARCH, config, full_rows, provenance, row, tree, unmeasured, write_run


class Page(HTMLParser):
    """What a browser would see: visible text, attributes, and the raw contents of script and style elements."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.attributes: list[tuple[str, str, str | None]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closes what is not open"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.raw:
            self.raw[self.open[-1]][-1] += data
        else:
            self.text += data

    @property
    def trees(self) -> list[dict[str, Any]]:
        """The embedded trees."""
        return json.loads(self.raw["script"][0])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a run with three rounds after the warm-up."""
    run = write_run(tmp_path_factory.mktemp("report") / "demo", full_rows())
    return Page(write_report(run).read_text(encoding="utf-8"))


def odd_page(tmp_path: Path, rows: list[RoundRow], **settings: Any) -> Page:
    """Return the page of a run with the given rows."""
    return Page(render_page(write_run(tmp_path / "odd", rows, **settings)))


def test_page_is_well_formed_and_starts_with_the_headline(page: Page) -> None:
    """Every element is closed in order, and the headline stands in the title and at the top."""
    assert page.open == []
    text = page.text.replace("\xa0", " ")
    assert "pass@1 from 16.7 % to 64.0 % in 3 rounds · demo" in text
    assert text.count("pass@1 from 16.7 % to 64.0 % in 3 rounds") == 2


def test_page_shows_every_section_in_reading_order(page: Page) -> None:
    """Table, curves, tokens, single problems, PRM, data, time, trees, settings."""
    sections = [value for tag, name, value in page.attributes if tag == "section" and name == "id"]
    expected = ["rounds", "by-round", "by-tokens", "before-after", "wrong", "prm", "data", "time", "trees", "reproduce"]
    assert sections == expected


def test_page_holds_the_figures(page: Page) -> None:
    """Accuracies with intervals, the gate's words, label counts with reasons, losses and stage times are all there."""
    text = page.text
    for figure in ("45.0", "40.0–50.0", "0.784", "1,204", "held-out pass@1 60.0 % is below the best model's 64.0 %", "current best"):
        assert figure in text
    assert "margin 812, both sides right 40" in text
    assert "339 (84.8 %)" in text
    assert "1.234 → 0.321" in text
    assert "policy, preferences" in text
    assert "policy, warm-up" in text
    assert "rejected" in text
    tips = [value for _, name, value in page.attributes if name == "data-tip"]
    assert "round 2\npolicy alone  64.0 (59.0–69.0) %\nsearch  81.0 (76.0–86.0) %\n" in "".join(f"{tip}\n" for tip in tips)
    assert any(tip == "round 3, search\n24 s" for tip in tips)


def test_page_remarks_on_over_optimisation(page: Page) -> None:
    """The remark names round and figures: in round 2 best-of-n goes from .61*1.2 to .61, the vote from .74*.9 to .74."""
    assert "round 2, 56 → 112 tokens: best-of-n 73.2 → 61.0\xa0%, vote 66.6 → 74.0\xa0%" in page.text


def test_over_optimisation_remark_stays_short(tmp_path: Path) -> None:
    """Of six such rounds the last four have figures and the earlier two are named."""
    rows = [row(number, policy=0.4, search=0.6, majority=0.5, best_of_n=0.5, vote=0.6, auc=0.7) for number in range(6)]
    text = odd_page(tmp_path, rows).text
    assert "round 1, 56" not in text
    assert text.count("tokens: best-of-n 60.0 → 50.0") == 4
    assert "and earlier in rounds 0, 1" in text


def test_page_has_one_token_chart_per_round(page: Page) -> None:
    """Every round can be chosen, and all charts share one scale of accuracy."""
    assert [value for tag, name, value in page.attributes if tag == "figure" and name == "data-round"] == ["0", "1", "2", "3"]


def test_page_loads_nothing(page: Page) -> None:
    """No attribute names a resource outside the page, no style or script asks for one, and no web address occurs at all."""
    for tag, name, value in page.attributes:
        if name in {"src", "href", "action", "data", "poster", "srcset", "xlink:href"}:
            assert value is not None
            assert value.startswith(("#", "data:")), (tag, name, value)
    code = "".join(page.raw["style"] + page.raw["script"])
    assert not re.search(r"https?:|url\(|@import|\bimport\b|fetch\(|XMLHttpRequest|innerHTML|eval\(", code)


def test_page_allows_only_its_own_script_and_style(page: Page) -> None:
    """The content policy forbids everything but the style and the script whose hashes it names; no element has inline style or handlers."""
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and name == "content" and value and "default-src" in value)
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for kind, text in (("style", page.raw["style"][0]), ("script", page.raw["script"][2])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not [name for _, name, _ in page.attributes if name == "style" or name.startswith("on")]


def test_hostile_question_is_text(page: Page) -> None:
    """A question with tags, comments and separators reaches the page unchanged as data, and adds no element."""
    assert [one["question"] for one in page.trees if one["problem_id"] == "test-0"] == [HOSTILE]
    # Trees, wrong problems, and the page's own script: the question is in the first two as data, and elsewhere as text.
    assert len(page.raw["script"]) == 3
    assert "<script" not in page.raw["script"][0] + page.raw["script"][1]


def test_hostile_settings_reasons_and_names_are_text(tmp_path: Path) -> None:
    """Text from the gate, from labels, stages, settings and the directory's name is escaped wherever it stands."""
    evil = "<img src=x onerror=alert(1)>"
    rows = full_rows()[:2]
    assert rows[1].labels is not None
    rows[1] = replace(rows[1], accepted_reason=evil, labels=replace(rows[1].labels, pairs=RowCounts(kept=1, dropped_by_reason={evil: 3})))
    settings = config(format={"system": evil, "prompt_template": "</code></pre><script>{question}"})
    run = write_run(tmp_path / "<b>run", rows, settings=settings)
    run.log_event("stage_end", round=1, stage=evil, seconds=1.0)
    shown = Page(render_page(run))
    assert "img" not in {tag for tag, _, _ in shown.attributes}
    assert shown.text.count(evil) >= 4
    assert len(shown.raw["script"]) == 3
    assert "run <b>run" in shown.text


def test_json_block_cannot_end_its_element() -> None:
    """No ``<`` is left in the block, and it parses back to what was put in."""
    value = {"a": "</script><!-- <script>", "b": "\u2028 é 問 & \" '"}
    assert "<" not in json_block(value)
    assert json.loads(json_block(value)) == value


def test_looking_at_a_run_runs_no_code_that_its_settings_name(tmp_path: Path) -> None:
    """A stranger's run may name functions of its own files: the page and the live view are made without them."""
    run = write_run(tmp_path / "run", full_rows())
    code, ran = tmp_path / "run" / "code.py", tmp_path / "ran"
    code.write_text(f"open({str(ran)!r}, 'w').close()\ndef f(*args, **options): pass\n")
    facts = json.loads((run.root / "run.json").read_text())
    problems = facts["config"]["problems"]
    del problems["rule"]
    problems |= dict.fromkeys(("verifier", "train", "test"), f"{code}:f")
    facts["config"]["format"] |= {"prompt": f"{code}:f", "steps": f"{code}:f"}
    facts["config"]["search"]["tool"] = f"{code}:f"
    facts["config"]["policy"]["trust_remote_code"] = True
    (run.root / "run.json").write_text(json.dumps(facts))
    opened = load_run(run.root)
    assert opened.config().problems.verifier == f"{code}:f"
    assert "Run it again" in render_page(opened)
    watch_run(run.root, Console(file=io.StringIO()), interval_s=1.0, once=True)
    assert not ran.exists()


def test_text_that_reverses_what_follows_is_shown_as_escapes() -> None:
    """An answer cannot turn the figures after it around: on the page, in its data, and in a notebook its characters are escapes."""
    answer = "7\u202e\u2066 \\u202e"
    shown = "7\\u202e\\u2066 \\u202e"
    made = Page(document(answer, table(("answer",), [(answer,)]), trees=[{"answer": answer}]))
    assert made.trees == [{"answer": shown}]
    assert made.text.count(shown) == 2
    record = tree("a", question=answer, answer=answer, origin=provenance(1, policy=0, scorer=0))
    notebook = tree_html(record, answer=answer)
    assert notebook.count(shown) >= 2
    assert not set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069") & set(notebook)


def test_run_with_only_the_start(tmp_path: Path) -> None:
    """Round 0 alone: no PRM, no labels, no pairs; what is missing is a dash or left out, and the page says what it is."""
    shown = odd_page(tmp_path, full_rows()[:1])
    text = shown.text.replace("\xa0", " ")
    assert "pass@1 16.7 % at the start; no round has been run yet" in text
    assert "No PRM has been measured in this run." in text
    assert "Rows kept and dropped" not in text
    assert "Over-optimisation" not in text
    assert "None" not in text
    assert re.search(r"\bnan\b", text) is None


def test_run_without_a_finished_round(tmp_path: Path) -> None:
    """Before the first round is finished the page still names the run and its settings."""
    shown = odd_page(tmp_path, [])
    assert "No round is finished yet" in shown.text
    assert shown.trees == []
    assert [value for tag, name, value in shown.attributes if tag == "section" and name == "id"] == ["reproduce"]


def test_rounds_without_prm_pairs_or_training(tmp_path: Path) -> None:
    """A run whose policy never solves anything: zero pairs are 0, the untrained policy is called unchanged and not rejected."""
    rows = [row(0, policy=0.0, search=0.0, majority=0.0)]
    none = RowCounts(kept=0, dropped_by_reason={"no right solution": 400})
    rows.append(
        replace(
            row(1, policy=0.0, search=0.0, majority=0.0, accepted=False, best_policy=0),
            policy_version=0,
            accepted_reason="no training data, the policy is unchanged",
            training=RoundTraining(),
            labels=LabelCounts(traces=none, pairs=RowCounts(kept=0), values=none),
            search=replace(SEARCH, solved=0, problems=0),
        )
    )
    shown = odd_page(tmp_path, rows)
    text = shown.text.replace("\xa0", " ")
    assert "pass@1 stays at 0.0 %: 1 round found nothing to train on" in text
    assert "unchanged no training data, the policy is unchanged" in text
    assert "badge rejected" not in {value for _, name, value in shown.attributes if name == "class"}
    assert "no right solution 400" in text


def test_run_without_evaluation_or_events(tmp_path: Path) -> None:
    """Figures that were not measured leave their charts out; a missing events file leaves the times out."""
    rows = [replace(entry, test=unmeasured(), held_out=unmeasured()) for entry in full_rows()[:2]]
    run = write_run(tmp_path / "run", rows)
    (run.root / "events.jsonl").unlink()
    shown = Page(render_page(run))
    assert "1 round, no pass@1 measured" in shown.text
    sections = [value for tag, name, value in shown.attributes if tag == "section" and name == "id"]
    assert sections == ["rounds", "before-after", "prm", "data", "trees", "reproduce"]


def test_rejected_prm_and_interruptions_are_said(tmp_path: Path) -> None:
    """The gate's word on the PRM stands beside the policy's; a stage that never ended is counted."""
    rows = full_rows()
    reason = "held-out within-problem AUC 0.490 is not above chance"
    rows[2] = replace(rows[2], prm_accepted=False, prm_accepted_reason=reason, best_prm=1)
    run = write_run(tmp_path / "run", rows)
    run.log_event("stage_begin", round=4, stage="search")
    run.log_event("start", rounds=4, workers=2)
    shown = Page(render_page(run))
    assert "PRM rejected: held-out within-problem AUC 0.490 is not above chance" in shown.text
    assert "The run was started 2 times. 1 stage cut off by a stop is not counted." in shown.text


def test_same_run_same_page(tmp_path: Path) -> None:
    """Writing the report again changes no byte, and nothing is left beside it."""
    run = write_run(tmp_path / "run", full_rows())
    first = write_report(run).read_bytes()
    assert write_report(run, tmp_path / "elsewhere" / "page.html").read_bytes() == first
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["page.html"]


def test_settings_reproduce_the_configuration(tmp_path: Path) -> None:
    """The TOML on the page parses to the run's configuration, hash included; None is left out and comes back as the default None."""
    settings = config(
        search={"method": "beam", "options": {"width": 4, "temperature": 0.7, "dedup": True, "rule": 'a"b\\c'}},
        sft={"lora": {"r": 4}, "max_updates": 10},
        format={"step_end": "\n\n", "answer_pattern": r"#### (.*)\x7f", "system": "é 問 \x7f \u2028"},
    )
    again = Config.model_validate(tomllib.loads(as_toml(settings.model_dump(mode="json"))))
    assert again == settings
    assert again.hash() == settings.hash()
    shown = odd_page(tmp_path, full_rows()[:1], settings=settings)
    assert settings.hash() in shown.text
    assert as_toml(settings.model_dump(mode="json")) in shown.text


def test_plain_strings_are_escaped_and_markup_is_not() -> None:
    """The one rule of escaping: str is text, Markup is HTML."""
    assert html("<b>&\"'") == "&lt;b&gt;&amp;&quot;&#x27;"
    assert html(Markup("<b>")) == "<b>"
    assert html(3) == "3"
    cells = table(("<i>", "n"), [("<u>", Markup("<b>1</b>"))])
    assert "&lt;i&gt;" in cells
    assert "&lt;u&gt;" in cells
    assert "<b>1</b>" in cells


def test_every_kind_of_rows_that_labelling_counts_has_a_line() -> None:
    """Weighted steps and mended solutions, too: a run with either had no report."""
    kinds = [each.name for each in fields(LabelCounts)]
    counts = LabelCounts(**{kind: RowCounts(kept=1001 + number) for number, kind in enumerate(kinds)})
    page = str(sections.data([replace(row(1, policy=0.5, search=0.5, majority=0.5), labels=counts)]))
    assert all(f"{1001 + number:,}" in page for number, _ in enumerate(kinds))
    assert "weighted steps" in page and "mended solutions" in page
