"""What mkdocs.yml leaves to Python: pages from outside of docs/, formulas, docstrings.

Formulas become MathML, which browsers show by themselves: the site needs no script from
elsewhere, neither when it is built nor when it is read.
"""

import html
import json
import pathlib
import re

import griffe
from latex2mathml import converter
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
_PAGES = "README.md", "CONTRIBUTING.md", "CHANGELOG.md"
_FILES = "LICENSE", "NOTICE"
_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)


def on_files(files, config):
    """Adds the pages of the repository's root, and one for every notebook."""
    for name in _PAGES:
        text = (ROOT / name).read_text("utf-8").replace("](docs/", "](")
        text = text.replace(".ipynb)", ".md)")
        files.append(File.generated(config, name, content=text))
    for name in _FILES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for path in sorted((ROOT / "docs").rglob("*.ipynb")):
        page = path.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
        files.append(File.generated(config, page, content=notebook_page(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Leads links to the repository's root to the pages that `on_files` adds."""
    return markdown.replace("](../README.md", "](README.md")


def on_page_content(content, page, config, files):
    """Replaces LaTeX with MathML; what cannot be read ends the build."""

    def replace(match):
        formula = html.unescape(match[2]).strip()
        display = "block" if match[1] == "div" else "inline"
        made = converter.convert(formula, display=display)
        # The converter leaves commands that it does not know, and closes braces.
        if "\\" in made or formula.count("{") != formula.count("}"):
            raise PluginError(f"{page.file.src_uri}: cannot read the formula {formula}")
        return made

    return _FORMULA.sub(replace, content)


def notebook_page(path: pathlib.Path) -> str:
    """A notebook and its stored outputs as Markdown."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            shown = output.get("data", {})
            if text := output.get("text") or shown.get("text/plain"):
                parts.append("```text\n" + "".join(text).rstrip() + "\n```")
            if image := "".join(shown.get("image/png", ())):
                parts.append(f'<img alt="" src="data:image/png;base64,{image}">')
    parts.insert(1, f"[This page as a notebook]({path.name})")
    return "\n\n".join(parts) + "\n"


class Docstrings(griffe.Extension):
    """Reads our docstrings the way that griffe's Google style has them."""

    def on_instance(self, *, obj, **_):
        """Names sections of examples, and fences what Markdown would reflow."""
        if obj.docstring is None:
            return
        text = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
        text = re.sub(r"(?m)(?<=\n\n)(>>> (?:.+\n?)+)", r"```pycon\n\1\n```\n", text)
        if obj.is_module:  # indented formulas
            text = re.sub(r"(?<=\n\n)((?:  .+\n)+)", r"```text\n\1```\n", text)
        obj.docstring.value = text
