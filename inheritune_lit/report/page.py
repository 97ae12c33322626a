"""Markdown with its figures as one HTML page that needs nothing else."""

import base64
import html
import re
from pathlib import Path
from urllib.parse import unquote

import markdown

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1, h2, h3, h4 { line-height: 1.25; margin: 2rem 0 .6rem; }
h2 { border-bottom: 1px solid #d0d7de; padding-bottom: .3rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid #d0d7de; padding: .25rem .55rem; }
th { background: #f3f5f7; }
img { max-width: 100%; height: auto; }
pre { background: #f3f5f7; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12.5px; }
li { overflow-wrap: anywhere; }
@media print {
  body { max-width: none; margin: 0; font-size: 10pt; }
  h2, h3 { break-after: avoid; }
  table, img, pre { break-inside: avoid; }
  table { font-size: 7.5pt; }
}
"""


def html_page(text: str, base: Path, refresh_s: int | None) -> str:
    """A page that opens offline.

    Args:
        text: Markdown; its figures are PNG files named relative to ``base``.
        base: where it stands.
        refresh_s: seconds after which a browser loads the page again; None for a page that is done.
    """
    body = markdown.markdown(text, extensions=["tables", "fenced_code", "sane_lists"])
    body = re.sub(r'src="([^"]+)"', lambda match: f'src="{_inlined(html.unescape(match[1]), base)}"', body)
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    again = f'<meta http-equiv="refresh" content="{refresh_s}">' if refresh_s else ""
    title = html.escape(text.splitlines()[0].lstrip("# "))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{again}'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _inlined(source: str, base: Path) -> str:
    data = base64.b64encode((base / unquote(source)).read_bytes()).decode("ascii")
    return f"data:image/png;base64,{data}"
