"""The documentation site builds strictly, leaves nothing out, and needs no network to be read."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

import stepladder
from tests.browser import browser, needs_browser

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not (find_spec("material") and find_spec("mkdocstrings")), reason="needs the extra docs")


class _Loaded(HTMLParser):
    """Addresses that a browser loads by itself, and the text of headings' ids."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids.add(found.get("id", ""))
        if tag in {"script", "img", "iframe", "source"}:
            self.loaded.append(found.get("src", ""))
        if tag == "link" and found.get("rel") in {"stylesheet", "preconnect", "icon", "preload"}:
            self.loaded.append(found.get("href", ""))
        if tag == "a":
            self.links.append(found.get("href", ""))


def read(page: Path) -> _Loaded:
    """Parse a page of the site."""
    parser = _Loaded()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the directory of the site, built as `make site` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", ROOT / "mkdocs.yml", "--site-dir", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    yield folder


def test_every_page_is_reached_from_the_navigation(site: Path) -> None:
    """Every Markdown file of docs/ is a page, and the home page's navigation leads to it."""
    linked = {link.partition("#")[0] for link in read(site / "index.html").links}
    pages = {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")} | {
        "results.html",
        "changelog.html",
        "contributing.html",
    }
    assert pages <= linked | {"index.html"}
    assert all((site / page).exists() for page in pages)


def test_no_link_is_broken(site: Path) -> None:
    """Every link between pages leads to a page that exists, and to a heading on it."""
    parsed = {page: read(page) for page in site.rglob("*.html")}
    for page, parts in parsed.items():
        if page.name == "404.html":
            continue
        for link in parts.links:
            path, _, anchor = link.partition("#")
            if re.match(r"\w+:", link) or (not path and not anchor):
                continue
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or target not in parsed or anchor in parsed[target].ids, f"{page.name}: {link}"


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    """Scripts, styles, fonts and pictures are files of the site, so it can be read without a network."""
    for page in site.rglob("*.html"):
        assert [address for address in read(page).loaded if re.match(r"(\w+:)?//", address)] == [], page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style.name


class _Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing about it."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@needs_browser
def test_the_search_box_finds_what_is_on_a_page(site: Path, tmp_path: Path) -> None:
    """Served on loopback, a search for "beam" lists the page of the methods, which its link opens; a word of no page finds nothing."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=site)) as server, browser(tmp_path / "profile") as chromium:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            page = chromium.page()
            page.open(f"http://127.0.0.1:{server.server_port}/index.html")
            found = "[...document.querySelectorAll('a.md-search-result__link')].map((link) => link.href)"
            page.run("document.querySelector('[data-md-component=search-query]').focus()")
            page.type("beam")
            page.wait_for(f"{found}.length")
            link = page.wait_for(f"{found}.find((address) => /\\/methods\\.html/.test(address))")
            assert "beam" in page.run("document.querySelector('.md-search-result__list').innerText").lower()
            page.run(f"document.querySelector('a.md-search-result__link[href=\"{link}\"]').click()")
            page.wait_for("location.pathname == '/methods.html' && document.readyState == 'complete'")
            assert "beam" in page.run("document.body.innerText").lower()
            page.run("document.querySelector('[data-md-component=search-query]').focus()")
            page.run("document.querySelector('[data-md-component=search-query]').value = ''")
            page.type("zyxwvu")
            page.wait_for(f"{found}.length == 0 && /no matching/i.test(document.querySelector('.md-search-result__meta').innerText)")
            assert page.problems == []
        finally:
            server.shutdown()


def test_every_public_name_has_its_place_in_the_reference(site: Path) -> None:
    """The page of the API documents each name of `stepladder.__all__`."""
    places = read(site / "api.html").ids
    assert [name for name in stepladder.__all__ if not any(place.endswith(f".{name}") for place in places)] == []


def test_pictures_of_the_concepts_are_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures are what docs/pictures/draw.py draws."""
    names: dict[str, object] = {"__name__": "draw", "__file__": str(ROOT / "docs/pictures/draw.py")}
    exec(compile((ROOT / "docs/pictures/draw.py").read_text(encoding="utf-8"), "draw.py", "exec"), names)
    names["HERE"] = tmp_path
    for draw in ("rounds", "tree", "scores", "labels", "gate"):
        names[draw]()  # pyright: ignore[reportCallIssue]
    drawn = sorted(tmp_path.glob("*.svg"))
    assert len(drawn) == 5
    for path in drawn:
        assert path.read_bytes() == (ROOT / "docs/pictures" / path.name).read_bytes(), path.name
