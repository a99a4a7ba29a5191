"""The page in a browser: no errors, readable, usable, and quick with very many problems and trees."""

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from stepladder.report.page import document, write_report
from stepladder.report.problem_sections import wrong, wrong_data
from stepladder.report.sections import trees
from stepladder.report.trees import tree_to_json
from stepladder.report.wrong_problems import Failure, WrongProblem
from tests.browser import Page, browser, needs_browser
from tests.report_run import full_rows, provenance, tree, write_run

pytestmark = needs_browser

CONTRAST = """
(() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const alpha = (colour) => colour.length > 3 ? colour[3] : 1;
  const over = (front, back) => [0, 1, 2].map((i) => alpha(front) * front[i] + (1 - alpha(front)) * back[i]);
  const behind = (element) => { const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(numbers(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((back, front) => over(front, back), [255, 255, 255]); };
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || ["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(element.tagName)) continue;
    if (!element.getClientRects().length) continue;
    const style = getComputedStyle(element), isDrawing = element.namespaceURI.endsWith("svg");
    const back = behind(element), opacity = Number(style.opacity);
    const front = over([...numbers(isDrawing ? style.fill : style.color).slice(0, 3), opacity], back);
    const [high, low] = [light(front), light(back)].sort((a, b) => b - a), ratio = (high + 0.05) / (low + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const name = `${element.tagName} ${element.className.baseVal ?? element.className}`;
    if (ratio < (large ? 3 : 4.5)) found.add(`${ratio.toFixed(2)} ${name}: ${node.textContent.trim().slice(0, 40)}`);
  }
  return [...found];
})()
"""
"""Returns texts whose contrast to what is behind them is below that of WCAG 2.1, AA."""

NAMELESS = """
[...document.querySelectorAll("button, input, select, svg[role=img], a, [role=region]")].filter((each) =>
  each.getClientRects().length && !each.getAttribute("aria-label") && !each.textContent.trim() && !(each.labels && each.labels.length)
).map((each) => each.outerHTML.slice(0, 80))
"""
HEADINGS = """
[...document.querySelectorAll("h1, h2, h3, h4")].filter((each) => each.getClientRects().length).map((each) => Number(each.tagName[1]))
"""
UNREACHABLE = """
[...document.querySelectorAll("body *")].filter((each) =>
  ["auto", "scroll"].includes(getComputedStyle(each).overflowX) && each.scrollWidth > each.clientWidth + 1
  && each.tabIndex < 0 && !each.querySelector("button, input, a, summary")
).map((each) => each.outerHTML.slice(0, 80))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A tab of a browser that all tests use."""
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started.page()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with questions that try to break it."""
    return write_report(write_run(tmp_path_factory.mktemp("report") / "run", full_rows()))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desk", "phone"])
def test_the_page_is_readable_and_has_no_errors(page: Page, report: Path, width: int, dark: bool) -> None:
    """No error of a script and no breach of the content policy; it fits its window; text has contrast, controls names, headings order."""
    page.open(report, width=width, dark=dark)
    assert page.problems == []
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(CONTRAST) == []
    assert page.run(NAMELESS) == []
    assert page.run(UNREACHABLE) == []
    levels = page.run(HEADINGS)
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_wrong_problems_are_found_by_words_and_by_kind(page: Page, report: Path) -> None:
    """The search looks at ids, questions and answers."""
    page.open(report)
    assert page.run("document.querySelectorAll('#wrong-rows tr').length") == 4
    page.run(
        "(() => { const box = document.getElementById('wrong-search'); box.value = '6 1 7'; box.dispatchEvent(new Event('input')); })()"
    )
    assert page.run("[...document.querySelectorAll('#wrong-rows th')].map((each) => each.textContent)") == ["test-6"]
    assert page.run("document.getElementById('wrong-count').textContent") == "1 of 1 shown"


def test_paper_is_white_and_shows_what_was_folded(page: Page, report: Path) -> None:
    """Also for those whose screen is dark; the controls are left out."""
    page.open(report, dark=True, media="print")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.run("getComputedStyle(document.querySelector('.choice')).display") == "none"
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run("[...document.querySelectorAll('main details')].every((each) => each.open)")


def test_ten_thousand_trees_and_wrong_problems_do_not_freeze_the_page(page: Page, tmp_path: Path) -> None:
    """The page is there within seconds, few elements are made, and a search in all of them takes no time that is felt."""
    count = 10_000
    record = tree("p", origin=provenance(1, policy=0, scorer=0), depth=2, children=2)
    plain = tree_to_json(record, answer=None, correct=False, graded={}, split="test")
    shown = [plain | {"problem_id": f"test-{number}", "question": f"question {number}"} for number in range(count)]
    problems = [
        WrongProblem(
            problem_id=f"test-{number}", question=f"question {number}", answer="1", failure=Failure.NOT_FOUND, greedy=False, sampled=0.0
        )
        for number in range(count)
    ]
    body = f"<header><h1>many</h1></header><main>{wrong(problems, 1, count)}{trees(count)}</main>"
    path = tmp_path / "many.html"
    path.write_text(document("many", body, trees=shown, wrong=wrong_data(problems)), encoding="utf-8")
    begin = time.monotonic()
    page.open(path)
    assert time.monotonic() - begin < 20
    assert page.problems == []
    assert page.run("document.querySelectorAll('body *').length") < 1500
    took = page.run(
        "(() => { const begin = performance.now(); for (const id of ['wrong-search', 'tree-search']) {"
        " const box = document.getElementById(id); box.value = 'question 9999'; box.dispatchEvent(new Event('input')); }"
        " return performance.now() - begin; })()"
    )
    assert took < 1000
    assert page.run("[...document.querySelectorAll('#wrong-rows th')].map((each) => each.textContent)") == ["test-9999"]
    assert page.run("document.querySelectorAll('#tree-list button').length") == 1
    page.run("document.querySelector('#tree-list button').click()")
    assert page.run("document.getElementById('tree-title').textContent").startswith("test-9999")
