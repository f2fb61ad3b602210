"""What the site has besides the pages here: what these link to in the repository.

Links are written for readers of the repository; here they lead to copies under `repository/`.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()(?!https?://|#)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add whatever pages link to outside docs/, and what that links to in turn."""
    waiting = [(file.src_uri, file.content_string) for file in files.documentation_pages()]
    while waiting:
        page, text = waiting.pop()
        for _, link in LINK.findall(text):
            path, name = _linked(page, link)
            if files.get_file_from_path(name) or path.startswith("docs/") or not (ROOT / path).is_file():
                continue
            if path.endswith(".ipynb"):
                resources = {"unique_key": Path(path).stem, "output_files_dir": f"{Path(path).stem}_files"}
                content, shown = MarkdownExporter().from_filename(str(ROOT / path), resources=resources)
                for picture, data in shown["outputs"].items():
                    files.append(File.generated(config, posixpath.join(posixpath.dirname(name), picture), content=data))
            elif path.endswith(".md"):
                content = (ROOT / path).read_text(encoding="utf-8")
            else:
                files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
                continue
            files.append(File.generated(config, name, content=content))
            waiting.append((name, content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the site has them; of what it cannot show, the words alone."""
    here = page.file.src_uri
    for text, link in re.findall(r"(\[[^\]]*\]\()((?!https?://|#)[^)\s#]+)\)", markdown):
        if not files.get_file_from_path(_linked(here, link)[1]):
            markdown = markdown.replace(f"{text}{link})", text[1:-2])
    return LINK.sub(
        lambda found: found[1] + posixpath.relpath(_linked(here, found[2])[1], posixpath.dirname(here)), markdown
    )


def _linked(page: str, link: str) -> tuple[str, str]:
    """Of a page of the site and a link on it: the path in the repository, and the file of the site that it is."""
    place = page.removeprefix("repository/") if page.startswith("repository/") else f"docs/{page}"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(place), link))
    if (ROOT / path).is_dir():
        path = posixpath.join(path, "README.md")
    name = path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"
    return path, re.sub(r"\.ipynb$", ".md", name)
