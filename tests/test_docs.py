"""The documentation: its site, its drawing, its links and its pictures."""

import re
import subprocess
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest

from docs.drawing import drawing
from docs.hooks import PAGES as PAGES_OUTSIDE
from docs.hooks import PARTS, for_site

from .conftest import PROJECT, run_python


PAGES = [
    *PAGES_OUTSIDE,
    *sorted(str(page.relative_to(PROJECT)) for page in (PROJECT / "docs").glob("*.md")),
]


# --- The site --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("site")
    command = ("-m", "mkdocs", "build", "--strict", "--site-dir", folder)
    return folder, run_python(*command, cwd=PROJECT, NO_MKDOCS_2_WARNING="1")


class PageReader(HTMLParser):
    """What a browser would load for a page, and the text of its paragraphs."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.paragraphs: list[str] = []
        self.open: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.loaded += [given[name] for name in ("src", "srcset", "poster", "data") if name in given]
        if tag == "link":
            self.loaded.append(given["href"])
        self.loaded += re.findall(r"url\(['\"]?([^)'\"]+)", given.get("style", ""))
        if tag in ("p", "code"):
            self.open.append(tag)
        if self.open == ["p"]:
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open == ["p"]:
            self.paragraphs[-1] += data


def test_the_site_is_built_without_a_warning(build):
    """Strict: a link, an anchor or a page that is missing ends the build."""
    _, process = build
    assert process.returncode == 0, process.stderr
    assert process.stdout == ""
    assert [line for line in process.stderr.splitlines() if not line.startswith("INFO ")] == []


def test_the_site_has_a_page_for_each_markdown_file(build):
    site, _ = build
    built = {str(page.relative_to(site)) for page in site.rglob("*.html")}
    named = {page.removeprefix("docs/").replace(".md", ".html") for page in PAGES if page.startswith("docs/")}
    assert built - {"404.html"} == named | {"index.html", "changelog.html", "contributing.html", "demo.html"}
    assert not list(site.rglob("*.py*"))


def test_the_site_loads_nothing_from_another_host(build):
    site, _ = build
    loaded = {address for page in site.rglob("*.html") for address in PageReader(page).loaded}
    for style in site.rglob("*.css"):
        loaded |= set(re.findall(r"(?:url\(|@import )['\"]?([^)'\"]+)", style.read_text(encoding="utf-8")))
    assert "extra.css" in loaded
    assert [address for address in loaded if re.match(r"(?!data:)[a-z]+:|//", address)] == []


def test_the_site_shows_markdown_as_github_does(build):
    """Python-Markdown wants a blank line before a list or a table, and four spaces within an item; else it is text."""
    site, _ = build
    for page in site.rglob("*.html"):
        text = "\n".join(PageReader(page).paragraphs)
        assert re.findall(r"^ *(?:[-*] |\d+\. |\||```|:::).*|.*\]\(.*", text, re.MULTILINE) == [], page.name


@pytest.mark.parametrize(
    "page, text, shown",
    [
        ("index.md", "[how](docs/usage.md#use) and [why](#why)", "[how](usage.md#use) and [why](#why)"),
        ("index.md", "![The method](docs/method.svg)", "![The method](method.svg)"),
        ("index.md", "[![small](docs/a.png)](docs/b.md)", "[![small](a.png)](b.md)"),
        ("index.md", '<img src="docs/method.svg">', '<img src="method.svg">'),
        (
            "index.md",
            "[demo](demo/README.md), [paper](https://arxiv.org)",
            "[demo](demo.md), [paper](https://arxiv.org)",
        ),
        ("index.md", "[LICENSE](LICENSE), [the page](sarcse/loading.py)", "LICENSE, the page (`sarcse/loading.py`)"),
        (
            "usage.md",
            "[home](../README.md#train), [the drawing](drawing.py)",
            "[home](index.md#train), the drawing (`docs/drawing.py`)",
        ),
        ("demo.md", "[train](../docs/training.md)", "[train](training.md)"),
        ("index.md", "[a file that is not there](missing.txt)", "[a file that is not there](missing.txt)"),
        ("index.md", "```\n[x](LICENSE)\n```", "```\n[x](LICENSE)\n```"),
    ],
)
def test_links_of_the_repository_lead_to_pages_of_the_site(page, text, shown):
    """What is no part of the site is named. A link that leads nowhere is left for mkdocs to report."""
    assert PARTS.sub(partial(for_site, page), text) == shown


def test_the_api_page_shows_what_the_package_exports(build):
    from sarcse import HOMES

    site, _ = build
    page = (site / "api.html").read_text(encoding="utf-8")
    for name, module in HOMES.items():
        assert f'id="{module}.{name}"' in page
    assert "contrastive_temperature" in page and "Temperature of InfoNCE." in page  # from a field's help


# --- The drawing -----------------------------------------------------------------------------------------------------


def test_the_drawing_is_what_its_script_draws():
    assert (PROJECT / "docs" / "method.svg").read_text(encoding="utf-8") == drawing()


# --- Links -----------------------------------------------------------------------------------------------------------


def without_code(page: Path) -> str:
    return re.sub(r"^( *)(```+).*?^\1\2$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return {*found}


@pytest.mark.parametrize("name", PAGES)
def test_the_links_of_a_page_lead_somewhere_in_the_repository(name):
    page = PROJECT / name
    for address in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", without_code(page)):
        path, _, anchor = "".join(address).partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (page.parent / path).resolve() if path else page
        made = target.parent == PROJECT / "docs" and target.name in PAGES_OUTSIDE.values()
        assert target.exists() and not made, f"{name}: {address}"
        assert not anchor or anchor in anchors(target), f"{name}: {address}"


def test_each_picture_is_on_a_page():
    shown = "".join(without_code(PROJECT / name) for name in PAGES)
    pictures = [path.name for path in (PROJECT / "docs").iterdir() if path.suffix in (".png", ".svg")]
    assert pictures and [name for name in pictures if name not in shown] == []
