"""The report in Markdown, with the commands that make its runs again, and as HTML that needs no other file."""

import base64
import html
import math
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import markdown

from inheritune_lit import DistillArgs, EvalArgs, OptimizerArgs, RunRecord, TrainArgs
from inheritune_lit.io.tables import markdown_table
from inheritune_lit.report.figures import Curve, draw_beside_paper, draw_layer_map, draw_loss_curves

KINDS = ("Growing", "Evaluation", "Analysis")
"""Kinds of pages, in the order of the report."""


@dataclass(frozen=True)
class Page:
    """The Markdown page that another command has left in its folder, with the figures beside it."""

    kind: str
    folder: Path
    file: str


def report_markdown(runs: Sequence[RunRecord], pages: Sequence[Page], official: dict[str, Curve], out_dir: Path) -> str:
    """Draws the figures into ``out_dir``, and returns the whole report as Markdown that belongs there."""
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    parts = ["# Report", f"Made on {made}. Losses are in nats per token, ± is one standard error."]
    if runs:
        parts += ["## Runs", _run_table(runs)]
        if validated := [run for run in runs if run.validations]:
            draw_loss_curves(validated, out_dir / "loss.png")
            parts.append("![Held-out loss against tokens, FLOPs and hours](loss.png)")
        if official:
            draw_beside_paper(runs, official, out_dir / "paper.png")
            title = "Beside the official runs: other data, tokenizer and batches unless the recipe is theirs"
            parts.append(f"![{title}](paper.png)")
    for number, run in enumerate(runs):
        if run.slice is None:
            continue
        parts += [f"### What {run.name} inherited", _sentence(run.slice)]
        if run.slice["layers"] is not None:
            draw_layer_map(run.slice, out_dir / f"layers-{number}.png")
            parts.append(f"![Layers of {run.name}](layers-{number}.png)")
    for page in sorted(pages, key=lambda page: KINDS.index(page.kind)):
        parts += [f"## {page.kind}: {page.folder.name}", *_page(page, out_dir)]
    if runs:
        parts += ["## To do it again", *map(_provenance, runs)]
    return "\n\n".join(parts) + "\n"


def _run_table(runs: Sequence[RunRecord]) -> str:
    rows = []
    for run in runs:
        slice_, first = run.slice or {}, run.validations[0] if run.validations else None
        rows.append(
            [
                run.name if run.final is not None else f"{run.name} (not finished)",
                _format(slice_.get("n_layer")),
                _format((slice_.get("parameters") or {}).get("total")),
                _format(run.rows[-1]["tokens"] if run.rows else 0),
                _last_loss(run),
                _loss(first) if first and first["step"] == 0 else "",
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


def _loss(row: dict[str, float]) -> str:
    return f"{row['val_loss']:.3f} ± {row['val_stderr']:.3f}" if "val_stderr" in row else ""


def _format(value: float | None, form: str = "{:,.0f}") -> str:
    return "" if value is None else form.format(value)


def _sentence(manifest: dict[str, Any]) -> str:
    reference = manifest["reference"]
    if manifest["layers"] is None:
        return f"Nothing: the shape of {reference['name']} at {manifest['n_layer']} layers, with random weights."
    outer = [name.replace("_", " ") for name in ("embeddings", "final_norm", "head") if manifest.get(name)]
    return (
        f"Layers {', '.join(map(str, manifest['layers']))} of the {reference['n_layer']} of {reference['name']} "
        f"({', '.join(manifest.get('parts', []))}), and its {', '.join(outer) or 'nothing else'}; {manifest['init']}."
    )


def _page(page: Page, base: Path) -> list[str]:
    text = (page.folder / page.file).read_text(encoding="utf-8")
    shown, loose = re.sub("^#", "###", text, flags=re.MULTILINE), []  # headings stand below this report's
    for figure in sorted(page.folder.glob("*.png")):
        path = Path(os.path.relpath(figure.resolve(), base.resolve())).as_posix().replace(" ", "%20")
        if figure.name in text:
            shown = shown.replace(f"]({figure.name})", f"]({path})")
        else:
            loose.append(f"![{figure.stem.replace('_', ' ')}]({path})")
    return [shown.strip(), *loose]


def _provenance(run: RunRecord) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.manifest.get("versions", {}).items())
    settings = run.settings
    facts = [f"started {run.manifest.get('created', 'unknown')}", versions]
    facts.append(f"start weights SHA-256 {settings.get('initial_weights_sha256', 'unknown')}")
    facts.append(f"data SHA-256 {settings.get('data_sha256', 'unknown')}")
    if distill := settings.get("distill"):
        facts.append(f"TEACHER in its command: {distill.get('teacher') or distill.get('teacher_logits')}")
    files = ((run.slice or {}).get("reference") or {}).get("files") or []
    facts += [f"source {file['path']} SHA-256 {file['sha256']}" for file in files if file.get("sha256")]
    listed, commands = "\n".join(f"- {fact}" for fact in facts), "\n".join(_commands(run))
    return f"### {run.name}\n\n{listed}\n\n```bash\n{commands}\n```"


def _commands(run: RunRecord) -> list[str]:
    """``inheritune slice`` and ``pretrain`` as they have to be called, without settings at their defaults."""
    settings, start = run.settings, run.parent
    initial = settings["initial_checkpoint_dir"]
    given = {"initial_checkpoint_dir": initial, "data": settings["data"], "out_dir": run.folder}
    given |= _changed("train", settings.get("train", {}), TrainArgs)
    given |= _changed("optimizer", settings.get("optimizer", {}), OptimizerArgs)
    if distill := settings.get("distill"):
        # What the teacher is was recorded, not where it was.
        source = "teacher" if "teacher" in distill else "teacher_logits"
        changed = _changed("distill", distill, DistillArgs).items()
        given |= {name: value for name, value in changed if not name.startswith("distill.teacher")}
        given[f"distill.{source}"] = source.upper()
    validation = settings.get("eval", {})
    given |= _changed("eval", {"interval": validation.get("interval", EvalArgs.interval)}, EvalArgs)
    # A run's micro-batch is not recorded: any that divides its batch gives the same.
    size = math.gcd(settings["train"]["global_batch_size"], TrainArgs.micro_batch_size)
    given |= _changed("train", {"micro_batch_size": size}, TrainArgs)
    if (samples := validation.get("samples")) is not None:
        given["eval.max_iters"] = math.ceil(samples / size)
    given |= {name: settings[name] for name in ("precision", "seed", "documents") if settings.get(name) is not None}
    if settings.get("fp8"):
        given["speed.fp8"] = True
    if isinstance(mixture := settings.get("mixture"), dict):
        given["mixture.weights"] = mixture
    sliced = [_slice_command(start, initial)] if start is not None and start.get("kind") == "slice" else []
    return [*sliced, _command("pretrain", given)]


def _slice_command(manifest: dict[str, Any], out_dir: str) -> str:
    layers, n, init = manifest["layers"], manifest["n_layer"], manifest.get("init", "inherit")
    given = {"ref": manifest["reference"]["source"]}
    if layers in (None, list(range(n))) or init in ("stack", "hybrid-stack"):
        given["n"] = n
    else:
        given["layers"] = ",".join(map(str, layers))
    if init != "inherit":
        given["init"] = init
    if manifest.get("parts") not in (None, ["attn", "mlp", "norm"]):
        given["parts"] = ",".join(manifest["parts"])
    given |= {name: False for name in ("embeddings", "final_norm", "head") if manifest.get(name) is False}
    return _command("slice", {**given, "seed": manifest["seed"], "out_dir": out_dir})


def _changed(group: str, settings: dict[str, Any], kind: type) -> dict[str, Any]:
    """Flags of a group for the settings that are not its defaults."""
    defaults = {field.name: field.default for field in fields(kind)}
    return {f"{group}.{key}": value for key, value in settings.items() if value != defaults.get(key, value)}


def _command(name: str, given: dict[str, Any]) -> str:
    words = {True: "true", False: "false", None: "null"}
    flags = (
        f"--{flag} {shlex.quote(words[value] if value is None or isinstance(value, bool) else str(value))}"
        for flag, value in given.items()
    )
    return f"inheritune {name} {' '.join(flags)}"


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
    """Returns Markdown as a page that opens offline.

    Args:
        text: names its figures, PNG files, relative to ``base``.
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
