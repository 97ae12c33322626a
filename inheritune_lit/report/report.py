"""``inheritune report``: one page of runs, evaluations and analyses, as Markdown and as HTML without other files."""

import base64
import html
import json
import logging
import math
import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from markdown import Markdown

from inheritune_lit import DistillArgs, EvalArgs, OptimizerArgs, RunRecord, SliceArgs, SpeedArgs, TrainArgs
from inheritune_lit.errors import UserError, printable
from inheritune_lit.io.folders import own_folder, replace_text
from inheritune_lit.io.manifest import check_folder, read_manifest, write_manifest
from inheritune_lit.io.reading import open_regular, read_text
from inheritune_lit.io.tables import markdown_table, plain
from inheritune_lit.report.args import ReportArgs
from inheritune_lit.report.figures import draw_layer_map, draw_loss_curves
from inheritune_lit.report.recorded import PAGES, Inherited, Page, collect, read_inherited, short_names

PAGE, TEXT, KIND = "report.html", "report.md", "report"
_MOST_DRAWN, _MOST_BYTES = 256, 64 << 20  # layers of a map, bytes of a figure
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportResult:
    """The page that was written."""

    page: Path

    def __str__(self) -> str:
        return f"wrote {self.page}"


def make_report(args: ReportArgs) -> ReportResult:
    """Writes page, text and figures; nothing to report, or an ``out_dir`` with something else, is a ``UserError``."""
    out_dir, found = args.out_dir, collect(args.runs)
    check_folder(out_dir, KIND, {})
    with own_folder(out_dir):
        if read_manifest(out_dir) is None:
            write_manifest(out_dir, KIND, {})
        while args.watch and (running := {name: run for name, run in _runs(found).items() if run.final is None}):
            _write(found, out_dir, args.watch)
            steps = {name: int(run.rows[-1]["step"]) if run.rows else 0 for name, run in running.items()}
            words = ", ".join(f"{name} at step {step:,}" for name, step in steps.items())
            logger.info("%s: %s", out_dir / PAGE, words)
            time.sleep(args.watch)
            found = collect(args.runs)
        _write(found, out_dir, None)
    return ReportResult(out_dir / PAGE)


def _runs(found: list[RunRecord | Page]) -> dict[str, RunRecord]:
    """The runs by the names that the report gives them."""
    runs = {each.folder: each for each in found if isinstance(each, RunRecord)}
    return {name: runs[folder] for folder, name in short_names(list(runs)).items()}


def _write(found: list[RunRecord | Page], out_dir: Path, refresh_s: int | None) -> None:
    pages = [each for each in found if isinstance(each, Page)]
    text = report_markdown(_runs(found), pages, out_dir)
    replace_text(out_dir / PAGE, html_page(text, out_dir, refresh_s, [page.folder for page in pages]))
    replace_text(out_dir / TEXT, text)


def report_markdown(runs: Mapping[str, RunRecord], pages: Sequence[Page], out_dir: Path) -> str:
    """Draws figures into ``out_dir``, and returns the report as Markdown for it; runs have the names it gives them."""
    slices = {name: read_inherited(run) for name, run in runs.items()}
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    parts = ["# Report", f"Made on {made}. Losses are in nats per token, ± is one standard error."]
    if runs:
        parts += ["## Runs", _run_table(runs, slices)]
        if validated := {name: run for name, run in runs.items() if run.validations}:
            draw_loss_curves(validated, out_dir / "loss.png")
            parts.append("![Held-out loss against tokens, FLOPs and hours](loss.png)")
    for number, (name, slice) in enumerate(slices.items()):
        parts += [f"### What {plain(name)} inherited", _sentence(slice)] if slice else []
        if slice and slice.layers is not None and slice.reference.n_layer <= _MOST_DRAWN:
            draw_layer_map(slice, out_dir / f"layers-{number}.png")
            parts.append(f"![Layers of {plain(name)}](layers-{number}.png)")
    titles = short_names([page.folder for page in pages])
    for page in sorted(pages, key=lambda page: list(PAGES).index(page.kind)):
        parts += [f"## {page.kind}: {plain(titles[page.folder])}", *_page(page, out_dir)]
    if runs:
        parts += ["## To do it again", *(_provenance(name, runs[name], slices[name]) for name in runs)]
    return "\n\n".join(parts) + "\n"


def _run_table(runs: Mapping[str, RunRecord], slices: Mapping[str, Inherited | None]) -> str:
    rows = []
    for name, run in runs.items():
        slice, first = slices[name], run.validations[0] if run.validations else None
        seconds = run.largest("seconds")
        cells = {
            "run": plain(name) if run.final is not None else f"{plain(name)} (not finished)",
            "layers": _format(slice.n_layer if slice else None),
            "parameters": _format(slice.parameters.get("total") if slice else None),
            "tokens": _format(run.rows[-1]["tokens"] if run.rows else 0),
            "held-out loss": _last_loss(run),
            "before training": _loss(first) if first and first["step"] == 0 else "",
            "tokens/s": _format(run.typical("tokens_per_s")),
            "MFU": _format(run.typical("mfu"), "{:.0%}"),
            "memory": _format(run.largest("memory_gb"), "{:.1f} GB"),
            "hours": _format(seconds and seconds / 3600, "{:.2f}"),
        }
        rows.append(list(cells.values()))
    return markdown_table(list(cells), rows)


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


def _sentence(slice: Inherited) -> str:
    reference = slice.reference
    if slice.layers is None:
        return f"Nothing: the shape of {plain(reference.name)} at {slice.n_layer} layers, with random weights."
    outer = [name.replace("_", " ") for name in ("embeddings", "final_norm", "head") if getattr(slice, name)]
    layers = f"Layers {', '.join(map(str, slice.layers))} of the {reference.n_layer} of {plain(reference.name)}"
    parts, rest = plain(", ".join(slice.parts or [])), ", ".join(outer) or "nothing else"
    return f"{layers} ({parts}), and its {rest}; {plain(slice.init)}."


def _page(page: Page, base: Path) -> list[str]:
    """The page with its headings below this report's, and the figures that lie beside it."""
    text = read_text(page.folder / PAGES[page.kind], "a page", "make it again, or leave the folder out")
    folder, targets = page.folder.resolve(), dict[str, str]()
    for figure in sorted(page.folder.glob("*.png")):
        if figure.resolve().parent == folder:  # a link may lead anywhere
            targets[figure.name] = quote(os.fsencode(os.path.relpath(figure.resolve(), base.resolve())))
    loose = [f"![{plain(Path(name).stem.replace('_', ' '))}]({targets[name]})" for name in targets if name not in text]

    def image(found: re.Match[str]) -> str:
        return f"![{found[1]}]({targets.get(found[2], found[2])})"

    shown = re.sub("^#", "###", text, flags=re.MULTILINE)
    return [re.sub(r"!\[([^\]]*)\]\(([^)]*)\)", image, shown).strip(), *loose]


def _provenance(name: str, run: RunRecord, slice: Inherited | None) -> str:
    recorded, settings = run.recorded, run.recorded.settings
    versions = ", ".join(f"{package} {version}" for package, version in recorded.versions.items())
    hashes = f"start weights SHA-256 {settings.initial_weights_sha256}", f"data SHA-256 {settings.data_sha256}"
    facts = [f"started {recorded.created}", versions, *hashes]
    if distill := settings.distill:
        facts.append(f"TEACHER in its command: {distill.get('teacher') or distill.get('teacher_logits')}")
    files = slice.reference.files or [] if slice else []
    facts += [f"source {file.get('path')} SHA-256 {file['sha256']}" for file in files if file.get("sha256")]
    listed = "\n".join(f"- {plain(fact)}" for fact in facts)
    commands = "\n".join(printable(command) for command in _commands(run, slice))
    return f"### {plain(name)}\n\n{listed}\n\n```bash\n{commands}\n```"


def _commands(run: RunRecord, slice: Inherited | None) -> list[str]:
    """``inheritune slice`` and ``pretrain`` as they have to be called, without settings at their defaults."""
    settings = run.recorded.settings
    initial, distill = settings.initial_checkpoint_dir, settings.distill or {}
    # A run's micro-batch is not recorded: any that divides its batch gives the same.
    size = math.gcd(settings.train.get("global_batch_size", 1), TrainArgs.micro_batch_size)
    given: dict[str, Any] = {"initial_checkpoint_dir": initial, "data": settings.data, "out_dir": run.folder}
    given |= _changed("train.", settings.train | {"micro_batch_size": size}, TrainArgs)
    given |= _changed("optimizer.", settings.optimizer, OptimizerArgs)
    if distill:  # what the teacher is was recorded, not where it was
        source = "teacher" if "teacher" in distill else "teacher_logits"
        own = {name: value for name, value in distill.items() if not name.startswith("teacher")}
        given |= _changed("distill.", own, DistillArgs) | {f"distill.{source}": source.upper()}
    own = {name: settings.eval[name] for name in ("interval", "samples") if name in settings.eval}
    given |= _changed("eval.", own, EvalArgs) | _changed("speed.", {"fp8": settings.fp8}, SpeedArgs)
    shared = {name: getattr(settings, name) for name in ("precision", "seed", "documents")}
    given |= {name: value for name, value in shared.items() if value is not None}
    if isinstance(settings.mixture, dict):
        given["mixture.weights"] = settings.mixture
    direct = run.parent is not None and run.parent.get("kind") == "slice"
    return [*([_slice_command(slice, initial)] if direct and slice else []), _command("pretrain", given)]


def _slice_command(slice: Inherited, out_dir: str) -> str:
    layers, n = slice.layers, slice.n_layer
    by_number = layers is None or layers == list(range(n)) or slice.init in ("stack", "hybrid-stack")
    given = {"ref": slice.reference.source} | ({"n": n} if by_number else {"layers": ",".join(map(str, layers or []))})
    recorded = {name: getattr(slice, name) for name in ("init", "embeddings", "final_norm", "head")}
    if slice.parts is not None:
        recorded["parts"] = ",".join(slice.parts)
    return _command("slice", {**given, **_changed("", recorded, SliceArgs), "seed": slice.seed, "out_dir": out_dir})


def _changed(group: str, settings: dict[str, Any], kind: type) -> dict[str, Any]:
    """Flags of a group for the settings that are not its defaults."""
    defaults = {field.name: field.default for field in fields(kind)}
    return {f"{group}{key}": value for key, value in settings.items() if value != defaults.get(key, value)}


def _command(name: str, given: dict[str, Any]) -> str:
    words = {flag: json.dumps(value) if isinstance(value, bool | None) else str(value) for flag, value in given.items()}
    return f"inheritune {name} {' '.join(f'--{flag} {shlex.quote(word)}' for flag, word in words.items())}"


_PAGE = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))


def html_page(text: str, base: Path, refresh_s: int | None, folders: Sequence[Path]) -> str:
    """Returns Markdown as a page that opens offline, and that a browser loads again after ``refresh_s``, if not None.

    Its figures are PNG files in ``base`` or a folder, named relative to ``base``; any other image is left out.
    """
    allowed = {folder.resolve() for folder in (base, *folders)}

    def image(found: re.Match[str]) -> str:
        path = (base / os.fsdecode(unquote_to_bytes(html.unescape(found[2])))).resolve()
        if path.parent not in allowed or path.suffix != ".png" or not path.is_file():
            return found[1]
        with open_regular(path) as file:
            content = file.read(_MOST_BYTES + 1)
        if not content.startswith(b"\x89PNG") or len(content) > _MOST_BYTES:
            raise UserError(f"{path} is not a PNG figure of up to {_MOST_BYTES:,} bytes; remove it, or make it again")
        source = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
        return f'<img alt="{found[1]}" src="{source}" />'

    reader = Markdown(extensions=["tables", "fenced_code", "sane_lists"])
    reader.preprocessors.deregister("html_block")  # pages are others' texts: HTML in them is shown, not obeyed
    reader.inlinePatterns.deregister("html")
    body = re.sub(r'(<a href=")(?!https?:|#)[^"]*', r"\1#", reader.convert(text))
    body = re.sub(r'<img alt="([^"]*)" src="([^"]*)"[^>]*>', image, body)
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    again = f'<meta http-equiv="refresh" content="{refresh_s}">' if refresh_s else ""
    title = html.escape(text.splitlines()[0].lstrip("# "))
    return _PAGE.substitute(again=again, title=title, body=body)
