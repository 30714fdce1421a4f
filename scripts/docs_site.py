"""Hooks of mkdocs: README.md is the first page of the site, and what pages link to outside of docs/ goes with them."""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import normpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages of docs/, README.md as the first, and the files of the project that they link to."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    of_site = LINK.sub(lambda link: link[0].removeprefix("docs/"), readme)
    files.append(File.generated(config, "index.md", content=of_site))
    waiting = [page.content_string for page in files.documentation_pages()]
    for text in waiting:
        for link in LINK.findall(text):
            place = normpath(link.removeprefix("../"))
            if (ROOT / place).is_file() and files.get_file_from_path(place) is None:
                linked = File.generated(config, place, abs_src_path=str(ROOT / place))
                files.append(linked)
                if linked.is_documentation_page():
                    waiting.append(with_places(linked))
    return files


def with_places(file: File) -> str:
    """The text of a linked page, whose own links are seen from the root."""
    folder = Path(file.src_uri).parent
    return LINK.sub(lambda link: str(folder / link[0]), file.content_string)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The links of docs/ to other folders of the project, as they lie in the site."""
    return LINK.sub(lambda link: link[0].removeprefix("../"), markdown)
