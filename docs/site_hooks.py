"""Pages of the site that live elsewhere in the repository, and links between them.

The results, the changelog and the guide for contributors stay where readers of the repository look for them. The site has them as pages,
and a link that leaves ``docs/`` for one of them leads to its page.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "benchmarks/RESULTS.md": "results.md",
    "benchmarks/methods-by-tokens.svg": "methods-by-tokens.svg",
    "benchmarks/methods-by-seconds.svg": "methods-by-seconds.svg",
    "benchmarks/gold-curves.svg": "gold-curves.svg",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files of the repository, and what the site calls them."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that live elsewhere."""
    for source, name in ELSEWHERE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn links between files of the repository into links between pages."""
    homes = {name: posixpath.dirname(source) for source, name in ELSEWHERE.items()}
    folder = homes.get(page.file.src_uri, "docs")

    def rewritten(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        return f"]({ELSEWHERE.get(path, path.removeprefix('docs/') if path.startswith('docs/') else match[1])}{match[2]})"

    return re.sub(r"\]\(((?!\w+:)[^)#\s]+)((?:#[^)\s]*)?)\)", rewritten, markdown)
