"""What the site has besides the pages here: what these link to in the repository, and a page a family of teachers.

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
TEACHERS, RECIPES = "teachers.md", "recipes.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add families' pages, and whatever pages link to outside docs/, and what that links to in turn."""
    for name, content in _families().items():
        files.append(File.generated(config, name, content=content))
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
    if here == TEACHERS:
        markdown = _overview(markdown)
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


def _sections(page: str) -> dict[str, str]:
    """Title → text of each section of a page of docs/."""
    parts = re.split(r"^## (.*)\n", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _name(title: str) -> str:
    return (
        f"teachers/{re.sub('[^a-z0-9]+', '-', title.lower().replace('α', 'alpha').replace('σ', 'sigma')).strip('-')}.md"
    )


def _families() -> dict[str, str]:
    """Page → its text: a section of teachers.md, its rows of the table there, and the recipes that it names."""
    recipes, overview = _sections(RECIPES), (ROOT / "docs" / TEACHERS).read_text().partition("## ")[0]
    rows_of_all = [table.splitlines() for table in re.findall(r"(?:^\|.*\|\n)+", overview, re.MULTILINE)]
    pages = {}
    for title, text in _sections(TEACHERS).items():
        named = dict.fromkeys(recipe for recipe in re.findall(r"scott distill (\S+)", text) if recipe in recipes)
        named |= {"realistic-vision": None} if "sd15" in named else {}
        named |= {"sd35-large": None} if "sd35-medium" in named else {}
        own = [
            [*rows[:2], *(row for row in rows if any(f"`{recipe}`" in row for recipe in named))] for rows in rows_of_all
        ]
        tables = "\n".join(f"## Recipe `{recipe}`\n\n{recipes[recipe]}" for recipe in named)
        body = f"# {title}\n\n" + "\n\n".join("\n".join(rows) for rows in own) + f"\n\n{text}\n{tables}"
        common = "\nEvery other value is [every recipe's](recipes.md#every-recipe-of-a-real-teacher).\n"
        pages[_name(title)] = LINK.sub(r"\1../\2", body + common)
    return pages


def _overview(markdown: str) -> str:
    """teachers.md up to its sections, each of which is a page."""
    links = "\n".join(f"- [{title}]({_name(title)})" for title in _sections(TEACHERS))
    return f"{markdown.partition('## ')[0]}\n{links}\n"
