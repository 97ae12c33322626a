"""The report in Markdown and as a page of HTML that needs no other file."""

import base64
import html
import os
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import markdown

from inheritune_lit import RunRecord
from inheritune_lit.io.tables import markdown_table
from inheritune_lit.report.commands import commands_of


@dataclass(frozen=True)
class Page:
    """The Markdown page that another command has left in its folder, with the figures beside it."""

    folder: Path
    file: str

    @property
    def figures(self) -> list[Path]:
        """PNG files of the folder."""
        return sorted(self.folder.glob("*.png"))


@dataclass(frozen=True)
class ReportInputs:
    """All that a report is made of, in the order in which it was named."""

    runs: list[RunRecord]
    growths: list[Page]
    evaluations: list[Page]
    analyses: list[Page]


def report_markdown(inputs: ReportInputs, figures: dict[str, Path], base: Path) -> str:
    """Returns the whole report; figures are named by paths relative to ``base``.

    Args:
        figures: by their names: "curves", "paper", and "layers of <run>" for maps of inherited layers.
        base: folder that the Markdown file is in.
    """
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    parts = ["# Report", f"Made on {made}. Losses are in nats per token, ± is one standard error."]
    if inputs.runs:
        parts += ["## Runs", _run_table(inputs.runs)]
        if "curves" in figures:
            parts.append(_image("Held-out loss against tokens, FLOPs and hours", figures["curves"], base))
        if "paper" in figures:
            title = "Beside the official runs: other data, tokenizer and batches unless the recipe is theirs"
            parts.append(_image(title, figures["paper"], base))
        parts += _inherited(inputs.runs, figures, base)
    for title, pages in (
        ("Growing", inputs.growths),
        ("Evaluation", inputs.evaluations),
        ("Analysis", inputs.analyses),
    ):
        for page in pages:
            parts += [f"## {title}: {page.folder.name}", *_page(page, base)]
    if inputs.runs:
        parts.append("## To do it again")
        parts += [_provenance(run) for run in inputs.runs]
    return "\n\n".join(parts) + "\n"


def _run_table(runs: list[RunRecord]) -> str:
    rows = []
    for run in runs:
        slice_ = run.slice or {}
        rows.append(
            [
                run.name if run.final is not None else f"{run.name} (not finished)",
                _format(slice_.get("n_layer")),
                _format((slice_.get("parameters") or {}).get("total")),
                _format(run.rows[-1]["tokens"] if run.rows else 0),
                _last_loss(run),
                _loss(run.validations[0]) if run.validations and run.validations[0]["step"] == 0 else "",
                _format(run.typical("tokens_per_s")),
                _format(run.typical("mfu"), "{:.0%}"),
                _format(run.largest("memory_gb"), "{:.1f} GB"),
                "" if (seconds := run.largest("seconds")) is None else f"{seconds / 3600:.2f}",
            ]
        )
    sizes, speed = ["run", "layers", "parameters", "tokens"], ["tokens/s", "MFU", "memory", "hours"]
    return markdown_table([*sizes, "held-out loss", "before training", *speed], rows)


def _last_loss(run: RunRecord) -> str:
    """The newest held-out loss, with its step where the run has gone further since; none before the first step."""
    if not run.validations or run.validations[-1]["step"] == 0:
        return ""
    last = run.validations[-1]
    return _loss(last) + ("" if last["step"] == run.rows[-1]["step"] else f" (step {last['step']:,.0f})")


def _inherited(runs: list[RunRecord], figures: dict[str, Path], base: Path) -> list[str]:
    parts = []
    for run in runs:
        manifest = run.slice
        if manifest is None:
            continue
        parts += [f"### What {run.name} inherited", _sentence(manifest)]
        if (name := f"layers of {run.name}") in figures:
            parts.append(_image(f"Layers of {run.name}", figures[name], base))
    return parts


def _sentence(manifest: dict[str, Any]) -> str:
    reference = manifest["reference"]
    if manifest["layers"] is None:
        return f"Nothing: the shape of {reference['name']} at {manifest['n_layer']} layers, with random weights."
    outer = [name.replace("_", " ") for name in ("embeddings", "final_norm", "head") if manifest.get(name)]
    parts = ", ".join(manifest.get("parts", []))
    return (
        f"Layers {', '.join(map(str, manifest['layers']))} of the {reference['n_layer']} of {reference['name']} "
        f"({parts}), and its {', '.join(outer) or 'nothing else'}; {manifest['init']}."
    )


def _page(page: Page, base: Path) -> list[str]:
    text = (page.folder / page.file).read_text(encoding="utf-8")
    # Their headings stand below this report's.
    lines = [f"##{line}" if line.startswith("#") else line for line in text.splitlines()]
    named = {figure.name for figure in page.figures if figure.name in text}
    for name in named:
        lines = [line.replace(f"]({name})", f"]({_relative(page.folder / name, base)})") for line in lines]
    loose = [figure for figure in page.figures if figure.name not in named]
    return ["\n".join(lines).strip(), *(_image(figure.stem.replace("_", " "), figure, base) for figure in loose)]


def _provenance(run: RunRecord) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.manifest.get("versions", {}).items())
    settings = run.settings
    facts = [f"started {run.manifest.get('created', 'unknown')}", versions]
    facts.append(f"start weights SHA-256 {settings.get('initial_weights_sha256', 'unknown')}")
    facts.append(f"data SHA-256 {settings.get('data_sha256', 'unknown')}")
    if distill := settings.get("distill"):
        teacher = distill.get("teacher") or distill.get("teacher_logits")
        facts.append(f"TEACHER in its command: {teacher}")
    facts += [f"source {file['path']} SHA-256 {file['sha256']}" for file in _source_files(run) if file.get("sha256")]
    listed = "\n".join(f"- {fact}" for fact in facts)
    return f"### {run.name}\n\n{listed}\n\n```bash\n" + "\n".join(commands_of(run)) + "\n```"


def _source_files(run: RunRecord) -> list[dict[str, Any]]:
    return ((run.slice or {}).get("reference") or {}).get("files") or []


def _image(title: str, path: Path, base: Path) -> str:
    return f"![{title}]({_relative(path, base)})"


def _relative(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path.resolve(), base.resolve())).as_posix().replace(" ", "%20")


def _loss(row: dict[str, float]) -> str:
    return f"{row['val_loss']:.3f} ± {row['val_stderr']:.3f}" if "val_stderr" in row else ""


def _format(value: float | None, form: str = "{:,.0f}") -> str:
    return "" if value is None else form.format(value)


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
    """Returns a page that opens offline.

    Args:
        text: Markdown; its figures are PNG files named relative to ``base``.
        base: where it stands.
        refresh_s: seconds after which a browser loads the page again; None for a finished page.
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
