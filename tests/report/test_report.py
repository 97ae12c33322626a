"""A report: its figures are those of the files, its commands give the same run again, and it needs nothing else."""

import base64
import csv
import html
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from tiny import make_checkpoint, make_packed

from inheritune_lit.cli import main
from inheritune_lit.io.folders import own_folder
from inheritune_lit.report.args import ReportArgs
from inheritune_lit.report.report import make_report


def sh(command: str) -> None:
    assert main(shlex.split(command)) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer_dir) -> Path:
    """Two runs, one out of some layers of a reference, and scores of both."""
    folder = tmp_path_factory.mktemp("report")
    make_checkpoint(folder / "reference", tokenizer_dir, n_layer=4)
    packed = make_packed(folder / "data", tokenizer_dir)
    sh(f"slice --ref {folder}/reference --layers 0,2 --parts attn,mlp --seed 3 --out_dir {folder}/inherited")
    sh(f"slice --ref {folder}/reference --n 2 --init random --out_dir {folder}/fresh")
    for name, initial in (("one", "inherited"), ("two", "fresh")):
        sh(
            f"pretrain --initial_checkpoint_dir {folder}/{initial} --data {packed} --out_dir {folder}/runs/{name} "
            "--train.max_steps 8 --train.global_batch_size 2 --train.micro_batch_size 2 --train.max_seq_length 16 "
            "--train.lr_warmup_steps 2 --train.log_interval 2 --eval.interval 4 --eval.max_iters 3 "
            "--optimizer.lr 1e-3 --precision 32-true --seed 7"
        )
    checkpoints = f"{folder}/runs/one/final {folder}/runs/two/final"
    sh(f"eval --checkpoint_dir {checkpoints} --val_data {packed} --val_blocks 4 --out_dir {folder}/runs/scores")
    return folder


@pytest.fixture(scope="module")
def report(runs) -> Path:
    sh(f"report {runs}/runs --out_dir {runs}/report")
    return runs / "report"


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attributes if name in ("src", "href") and value]


def test_the_page_needs_nothing_else(report):
    page = (report / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert len(links.found) == 2  # curves, and the layers of the run that inherited
    for link in links.found:
        kind, _, data = link.partition(",")
        assert kind == "data:image/png;base64"
        pixels = matplotlib.image.imread(BytesIO(base64.b64decode(data)), format="png")
        assert min(pixels.shape[:2]) > 200 and pixels[..., :3].std() > 0.02
    assert "http" not in re.sub(r'content="[^"]*"|http-equiv|base64,[^"]*', "", page)
    text = (report / "report.md").read_text()
    for name in re.findall(r"\]\(([^)]+\.png)\)", text):
        assert (report / name).is_file()


def test_figures_are_those_of_the_files(runs, report):
    text = (report / "report.md").read_text()
    for name in ("one", "two"):
        with (runs / "runs" / name / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        final = json.loads((runs / "runs" / name / "final" / "inheritune.json").read_text())
        assert cells[3] == f"{final['tokens']:,}"
        assert cells[4] == f"{float(rows[-1]['val_loss']):.3f} ± {float(rows[-1]['val_stderr']):.3f}"
        assert cells[5] == f"{float(rows[0]['val_loss']):.3f} ± {float(rows[0]['val_stderr']):.3f}"
    assert "Layers 0, 2 of the 4 of tiny (attn, mlp), and its embeddings, final norm, head" in text
    assert "## Evaluation: scores" in text and "held-out loss" in text


def test_its_commands_give_the_same_run(runs, report, tmp_path):
    text = (report / "report.md").read_text()
    block = text.partition("### one")[2].partition("```bash\n")[2].partition("```")[0]
    commands = [command.removeprefix("inheritune ") for command in block.splitlines()]
    assert [command.split()[0] for command in commands] == ["slice", "pretrain"]
    sh(commands[0].replace(f"{runs}/inherited", f"{tmp_path}/inherited"))
    again = commands[1].replace(f"{runs}/inherited", f"{tmp_path}/inherited")
    sh(again.replace(f"{runs}/runs/one", f"{tmp_path}/one"))
    for file in ("lit_model.pth",):
        assert (tmp_path / "one/final" / file).read_bytes() == (runs / "runs/one/final" / file).read_bytes()


def test_a_distilled_run_names_its_teacher(runs, tmp_path):
    args = f"--initial_checkpoint_dir {runs}/fresh --data {runs}/data --out_dir {tmp_path}/taught --precision 32-true "
    args += "--train.max_steps 2 --train.lr_warmup_steps 0 --train.global_batch_size 4 --train.max_seq_length 16 "
    sh(f"pretrain {args} --distill.teacher {runs}/reference --distill.alpha 0.3 --eval.max_iters 2")
    sh(f"report {tmp_path}/taught --out_dir {tmp_path}/report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "--distill.alpha 0.3 --distill.teacher TEACHER" in text
    settings = json.loads((tmp_path / "taught" / "inheritune.json").read_text())["settings"]
    assert f"- TEACHER in its command: {settings['distill']['teacher']}" in text


def test_growths_and_analyses_are_taken_up(runs, report, tmp_path):
    shutil.copytree(runs / "runs" / "one", tmp_path / "grown" / "round-01-2l")
    (tmp_path / "grown" / "grow.md").write_text("| round | verdict |\n|---|---|\n| 1 | met |\n")
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "analysis.md").write_text("# Analysis of tiny\n\n![depth](depth.png)\n")
    for picture in ("grown/grow.png", "seen/depth.png"):
        shutil.copy(report / "loss.png", tmp_path / picture)
    sh(f"report {tmp_path}/grown {tmp_path}/seen --out_dir {tmp_path}/page")
    text = (tmp_path / "page" / "report.md").read_text()
    assert "## Growing: grown" in text and "| round-01-2l |" in text and "### Analysis of tiny" in text
    assert "](../grown/grow.png)" in text and "](../seen/depth.png)" in text
    links = Links()
    links.feed((tmp_path / "page" / "report.html").read_text())
    assert len(links.found) == 4 and all(link.startswith("data:image/png") for link in links.found)


def test_a_browser_shows_it(report, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    page = (report / "report.html").resolve().as_uri()
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    shot = [*command, f"--screenshot={tmp_path}/page.png", "--window-size=1200,1600", page]
    subprocess.run(shot, check=True, capture_output=True, timeout=120)
    pixels = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    ink = (pixels < 0.9).any(axis=2)
    assert ink[:400].any() and ink[400:800].any()  # the table, then the curves
    blue = (np.abs(pixels - np.array([0, 114, 178]) / 255) < 0.02).all(axis=2)
    assert blue.sum() > 500  # the first run's curve, and what is inherited
    printed = [*command, "--print-to-pdf-no-header", f"--print-to-pdf={tmp_path}/page.pdf", page]
    subprocess.run(printed, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_watching_ends_with_the_run(runs, tmp_path):
    shutil.copytree(runs / "runs" / "one", tmp_path / "live")
    (tmp_path / "live/final").rename(tmp_path / "later")
    seen = []

    def finish():
        while not (tmp_path / "out/report.html").is_file():
            time.sleep(0.05)
        seen.append((tmp_path / "out/report.html").read_text())
        (tmp_path / "later").rename(tmp_path / "live/final")

    thread = threading.Thread(target=finish)
    thread.start()
    make_report(ReportArgs([tmp_path / "live"], out_dir=tmp_path / "out", watch=1))
    thread.join()
    assert 'http-equiv="refresh" content="1"' in seen[0] and "live (not finished)" in seen[0]
    done = (tmp_path / "out/report.html").read_text()
    assert "http-equiv" not in done and "not finished" not in done


def test_damaged_metrics_are_named(runs, tmp_path, capsys):
    run = next(path.parent for path in sorted((runs / "runs").rglob("metrics.csv")))
    for text in ("foo,bar\n1,2\n", "step,loss\n1,much\n"):
        shutil.copytree(run, tmp_path / "run", dirs_exist_ok=True)
        (tmp_path / "run" / "metrics.csv").write_text(text)
        assert main(["report", str(tmp_path / "run"), "--out_dir", str(tmp_path / "page")]) == 2
        error = capsys.readouterr().err
        assert f"{tmp_path / 'run' / 'metrics.csv'} " in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("{runs}/nowhere", "no folder at"),
        ("{runs}/data", "holds no run, evaluation or analysis"),
        ("{runs}/runs --out_dir {runs}/data", "holds a packed_data, not a report; give another --out_dir"),
        ("{runs}/runs --out_dir {runs}/../there/page", "cannot write"),
        ("{runs}/runs --watch 0", "--watch is 0; give seconds"),
    ],
)
def test_bad_input_is_one_line(runs, arguments, complaint, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (runs.parent / "there").write_text("a file")
    assert main(["report", *arguments.format(runs=runs).split()]) == 2
    error = capsys.readouterr().err
    assert complaint in error and len(error.splitlines()) == 1
    assert not (tmp_path / "report").exists()


def test_a_stopped_run_shows_no_loss_of_before(runs, tmp_path):
    shutil.copytree(runs / "runs" / "one", tmp_path / "live")
    shutil.rmtree(tmp_path / "live/final")
    lines = (tmp_path / "live/metrics.csv").read_text().splitlines(keepends=True)
    header = lines[0].strip().split(",")
    cells = {}
    for last in (2, 4, 6):
        kept = [line for line in lines[1:] if int(dict(zip(header, line.split(","), strict=False))["step"]) <= last]
        (tmp_path / "live/metrics.csv").write_text("".join([lines[0], *kept]))
        make_report(ReportArgs([tmp_path / "live"], out_dir=tmp_path / "page"))
        text = (tmp_path / "page" / "report.md").read_text()
        row = next(line for line in text.splitlines() if line.startswith("| live (not finished) |"))
        cells[last] = [cell.strip() for cell in row.strip("|").split("|")][3:6]
    # At step 2 nothing but the start has been validated.
    assert cells[2][0] == f"{2 * 2 * 16:,}" and cells[2][1] == "" and "±" in cells[2][2]
    assert "±" in cells[4][1] and "step" not in cells[4][1]
    assert cells[6][1] == f"{cells[4][1]} (step 4)" and cells[6][2] == cells[2][2]


def copy_of(runs: Path, folder: Path) -> Path:
    """A run and its scores, to damage."""
    shutil.copytree(runs / "runs" / "one", folder)
    return folder


def damage(folder: Path, file: str, change: str, value: object = None) -> None:
    """Another value at a place such as settings.train of a manifest; the place is gone where the value is None."""
    content = json.loads((folder / file).read_text())
    *path, last = change.split(".")
    inner = content
    for name in path:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    (folder / file).write_text(json.dumps(content))


RUN, FINAL = "inheritune.json", "final/inheritune.json"
DAMAGES = [
    *((RUN, f"settings{each}", value) for each in ("", ".train", ".optimizer", ".eval") for value in (None, 5)),
    *((RUN, f"settings.{each}", [1]) for each in ("initial_checkpoint_dir", "data", "mixture", "distill")),
    *((RUN, "versions", value) for value in ([1], {"a": {}}, "x")),
    *((FINAL, f"parent{each}", value) for each in ("", ".reference", ".layers") for value in (5, "x")),
    (FINAL, "parent.layers", [0, 99]),
    (FINAL, "parent.layers", [0]),
    (FINAL, "parent.reference.n_layer", -1),
    (FINAL, "parent.reference.files", [3]),
    (FINAL, "parent.parts", {"a": 1}),
    (FINAL, "parent.parameters", None),
    (FINAL, "parent.seed", "one"),
]


@pytest.mark.parametrize(("file", "place", "value"), DAMAGES, ids=str)
def test_damaged_manifests_are_named(file, place, value, runs, tmp_path, capsys):
    damage(copy_of(runs, tmp_path / "run"), file, place, value)
    assert main(["report", str(tmp_path / "run"), "--out_dir", str(tmp_path / "page")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/run" in error and len(error.splitlines()) == 1, error
    assert not list((tmp_path / "page").glob("report.*"))


@pytest.mark.parametrize("text", ["step,loss\n1,2\n", "step,tokens\n1," + "9" * 200_000 + "\n", "\0\0\0", '"'])
def test_odd_metrics_are_one_line_or_a_report(text, runs, tmp_path, capsys):
    (copy_of(runs, tmp_path / "run") / "metrics.csv").write_text(text)
    assert main(["report", str(tmp_path / "run"), "--out_dir", str(tmp_path / "page")]) in (0, 2)
    assert len(capsys.readouterr().err.splitlines()) <= 1


@pytest.mark.parametrize("value", ["nan", "inf", "-1e308", "1e400", "-5"])
@pytest.mark.parametrize("column", ["val_loss", "val_stderr", "seconds", "mfu"])
def test_numbers_that_no_run_has_are_drawn_or_refused(column, value, runs, tmp_path, capsys):
    folder = copy_of(runs, tmp_path / "run")
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row[column] = value
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert main(["report", str(folder), "--out_dir", str(tmp_path / "page")]) in (0, 2)
    assert len(capsys.readouterr().err.splitlines()) <= 1


def test_a_slice_of_a_billion_layers_is_not_drawn(runs, tmp_path):
    folder = copy_of(runs, tmp_path / "run")
    damage(folder, "final/inheritune.json", "parent.reference.n_layer", 10**9)
    sh(f"report {folder} --out_dir {tmp_path}/page")
    assert "of the 1000000000 of tiny" in (tmp_path / "page/report.md").read_text()


def test_names_are_shown_as_they_are(runs, tmp_path):
    names = ["a|b", "<script>>", "$x_$ $", "_lead*er*", "![i](x.png)", "\x1b[31mred\n# top"]
    for name in names:
        copy_of(runs, tmp_path / "runs" / name)
    (tmp_path / "runs/analysis").mkdir()
    (tmp_path / "runs/analysis/analysis.md").write_text(
        "# Analysis\n\n<script>alert(1)</script>\n\n![s](../secret.png) ![t][t] ![u](http://a.example/u.png) "
        "[click](javascript:alert(1)) <img src='x' onerror='alert(1)'>\n\n[t]: ../secret.png\n"
    )
    shutil.copy(next(runs.rglob("loss.png"), None) or make_png(tmp_path / "loss.png"), tmp_path / "secret.png")
    (tmp_path / "runs/analysis/depth.png").symlink_to(tmp_path / "secret.png")
    make_report(ReportArgs([tmp_path / "runs"], out_dir=tmp_path / "page"))
    page, text = (tmp_path / "page/report.html").read_text(), (tmp_path / "page/report.md").read_text()
    assert "<script" not in page and "<img src='x'" not in page and "javascript:" not in page
    table = page.partition("<table>")[2].partition("</table>")[0]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert {len(row) for row in cells} == {10} and len(cells) == len(names)
    shown = {html.unescape(row[0]) for row in cells}
    assert shown == {"a|b", "<script>>", "$x_$ $", "_lead*er*", "![i](x.png)", "\\x1b[31mred\\n# top"}
    assert "\n# top" not in text and "\x1b" not in text + page
    links = Links()
    links.feed(page)
    pictures = [link for link in links.found if link.startswith("data:")]
    assert len(pictures) == 1 + len(names)  # the curves and the layers, nothing from elsewhere


def make_png(path: Path) -> Path:
    matplotlib.image.imsave(path, np.zeros((4, 4)))
    return path


def test_two_runs_of_one_name_are_told_apart(runs, tmp_path):
    for above in ("long", "short"):
        shutil.copytree(runs / "runs" / "one", tmp_path / above / "one")
        shutil.copytree(runs / "runs" / "scores", tmp_path / above / "one" / "scores")
    make_report(ReportArgs([tmp_path / "long", tmp_path / "short", tmp_path / "short/one"], out_dir=tmp_path / "page"))
    text = (tmp_path / "page/report.md").read_text()
    for heading in ("| long/one |", "| short/one |", "## Evaluation: long/one/scores", "### What short/one inherited"):
        assert text.count(heading) == 1, heading


def test_a_stopped_report_is_made_again_and_has_one_writer(runs, tmp_path, capsys, monkeypatch):
    out = tmp_path / "page"
    words = ["report", str(runs / "runs"), "--out_dir", str(out)]
    with monkeypatch.context() as patched:
        patched.setattr("inheritune_lit.report.report.html_page", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        if (child := os.fork()) == 0:
            main(words)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (out / "loss.png").is_file() and not (out / "report.md").exists()
    with own_folder(out):
        assert main(words) == 2
    error = capsys.readouterr().err
    assert f"process {os.getpid()} on " in error and f"is at work on {out}; wait for it" in error
    assert main(words) == 0 and main(words) == 0
    assert (out / "report.md").is_file() and not list(out.glob(".*"))
