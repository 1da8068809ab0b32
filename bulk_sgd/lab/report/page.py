"""HTML of the reports: self-contained pages with figures and tables."""

import base64
import html
import json
import pathlib

_CSS = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #222; line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p, figcaption, ul { max-width: 46rem; }
ul { padding-left: 1.2rem; }
.facts, figcaption { color: #505050; }
figcaption { font-size: .92rem; }
.note { border-left: .3rem solid #d55e00; background: #fdf1e8; padding: .6rem .9rem; }
figure { margin: 1.8rem 0; }
.wide { overflow-x: auto; }
.wide img { display: block; width: 100%; min-width: 40rem; height: auto; }
table { border-collapse: collapse; font-size: .84rem; width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .4rem; text-align: right; border-bottom: 1px solid #ddd; }
thead th { vertical-align: bottom; border-bottom: 2px solid #666; line-height: 1.25; }
th:first-child, td:nth-child(2), thead th:nth-child(-n+2) { text-align: left; }
tbody th { white-space: nowrap; font-weight: 600; }
td:nth-child(2) { min-width: 7.4rem; }
.prose tbody th, .prose td { white-space: normal; text-align: left;
  vertical-align: top; }
.prose thead th { text-align: left; }
.prose td:nth-child(3), .prose td:nth-child(4) { white-space: nowrap; }
tbody th.group { padding-top: 1rem; white-space: normal; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .45em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { color: #505050; } dd { margin: 0; overflow-wrap: anywhere; white-space: pre-line; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; }
@media (max-width: 34rem) { dl { display: block; } dd { margin-bottom: .5rem; } }
@media print {
  main { max-width: none; padding: 0; } body { font-size: 10pt; }
  .wide { overflow: visible; } .wide img { min-width: 0; }
  table { font-size: 6.5pt; } th, td { padding: .15rem .2rem; }
  figure, tr, .note { break-inside: avoid; } h2 { break-after: avoid; }
  tbody th.group { padding-top: 1rem; white-space: normal; }
.swatch { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def text(value) -> str:
    """A value as text that is safe in HTML."""
    return html.escape(str(value))


def write(folder: pathlib.Path, title: str, body: str) -> pathlib.Path:
    """Writes `folder/index.html`, a page with a heading; `title` is safe text."""
    path = folder / "index.html"
    document = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: report</title>
<style>{_CSS}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""
    path.write_text(document, encoding="utf-8")
    return path


def facts(entries: list[str]) -> str:
    """Short facts in one line; empty ones are left out."""
    return f'<p class="facts">{text(" · ".join(filter(None, entries)))}</p>\n'


def commands(infos: list[dict], grown=False) -> dict[str, str]:
    """The commands that made runs, each once, under a name that says if they grew."""
    told = [str(info.get("command") or "").splitlines() for info in infos]
    every = dict.fromkeys(line for lines in told for line in lines)
    name = "commands" if len(every) > 1 else "command"
    grown = grown or any(len(lines) > 1 for lines in told)
    return {name + " (grown)" * grown: "\n".join(every)}


def versions(info: dict) -> str:
    """The versions of packages that a run recorded."""
    known = info.get("versions") or {}
    return ", ".join(f"{name} {version}" for name, version in known.items())


def note(sentence) -> str:
    """A sentence set apart."""
    return f'<p class="note">{text(sentence)}</p>\n'


def definitions(entries: dict) -> str:
    """Names with their values."""
    items = "".join(
        f"<dt>{name}</dt><dd>{text(value or 'not recorded')}</dd>\n"
        for name, value in entries.items()
    )
    return f"<dl>\n{items}</dl>\n"


def details(summary: str, value) -> str:
    """A value as JSON, folded away under its summary."""
    shown = text(json.dumps(value, indent=2, ensure_ascii=False))
    return fold(summary, f"<pre>{shown}</pre>")


def fold(summary: str, content: str) -> str:
    """HTML folded away under its summary."""
    head = f"<summary>{text(summary)}</summary>"
    return f"<details>{head}\n{content}</details>\n"


def figure(heading: str, caption: str, alt: str, image: bytes) -> str:
    """A PNG image with its caption and alternative text."""
    data = base64.b64encode(image).decode()
    return f"""<figure>
<div class="wide" role="group" tabindex="0" aria-label="{text(heading)}">
<img alt="{text(alt)}" src="data:image/png;base64,{data}">
</div>
<figcaption>{text(caption)}</figcaption>
</figure>
"""


def table(
    label: str, heads: list[str], rows: list[list[str]], colors=None, prose=False
) -> str:
    """A table whose first column names the rows, each with its colour if there are any.

    A row with one entry is a heading for the rows below it. With `prose`, the first two
    columns are sentences and the next two are short.
    """
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in heads)
    body = []
    for color, (first, *rest) in zip(colors or [None] * len(rows), rows):
        swatch = f'<span class="swatch" style="background:{color}"></span>'
        cells = "".join(f"<td>{text(cell)}</td>" for cell in rest)
        first = (swatch if color else "") + text(first)
        if not rest:
            span = f'<th class="group" scope="rowgroup" colspan="{len(heads)}">'
            body.append(f"<tr>{span}{first}</th></tr>")
            continue
        body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    body = "\n".join(body)
    return f"""<div class="wide" role="group" tabindex="0" aria-label="{text(label)}">
<table{' class="prose"' * prose}>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>
"""
