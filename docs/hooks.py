"""
A hook of mkdocs: pages made of Markdown files outside docs/, and the links of all pages.

In the files a link leads to a file of the repository. On the site it leads to the page that is made of that file. If
there is none, its text stays without the link, since the repository has no public address yet.
"""

import re
from functools import partial
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


PROJECT = Path(__file__).parent.parent

# Files outside docs/ and the pages made of them.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "demo/README.md": "demo.md",
}
SOURCES = {page: source for source, page in PAGES.items()}

# A code block, which stays as it is; a link or a picture, or a picture that is a link; an address in HTML.
PARTS = re.compile(
    r"(?P<code>^(?P<indent> *)(?P<fence>```+|~~~+).*?^(?P=indent)(?P=fence)[ \t]*$)"
    r"|(?P<picture>!?)\[(?P<label>(?:!\[[^]]*]\([^)]*\)|[^]])*)]\((?P<target>[^)\s]+)\)"
    r'|(?P<attribute>\b(?:src|srcset|href))="(?P<address>[^"]+)"',
    re.DOTALL | re.MULTILINE,
)

# A line with a badge, which would be loaded from another host.
BADGES = re.compile(r"^\[!\[[^]]*]\(https:.*\n", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages made of files outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(PROJECT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let the links of a page lead to other pages, and leave badges out."""
    return PARTS.sub(partial(for_site, page.file.src_uri), BADGES.sub("", markdown))


def for_site(page: str, match: re.Match[str]) -> str:
    """A part of a page as the site has it."""
    if match["code"]:
        return match[0]
    address = match["target"] or match["address"]
    path, _, anchor = address.partition("#")
    if not path or ":" in path:  # an anchor on the same page, or another host
        return match[0]
    file = normpath(f"{dirname(SOURCES.get(page, f'docs/{page}'))}/{path}").lstrip("/")
    in_docs = file.startswith("docs/") and not file.endswith(".py")
    to = PAGES.get(file, file.removeprefix("docs/") if in_docs else None)
    label = PARTS.sub(partial(for_site, page), match["label"] or "")
    if to is None:
        if not (PROJECT / file).exists() or match["address"]:
            return match[0]  # which mkdocs reports
        return label if Path(file).name in label else f"{label} (`{file}`)"
    to = relpath(to, dirname(page) or ".") + (f"#{anchor}" if anchor else "")
    return f'{match["attribute"]}="{to}"' if match["address"] else f"{match['picture']}[{label}]({to})"
