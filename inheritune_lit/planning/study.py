"""``inheritune analyze`` as a whole: measure a model, draw it, advise on n, compare criteria."""

import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from inheritune_lit.analysis.analyze import analyze
from inheritune_lit.analysis.args import AdviceArgs, AnalyzeOptions
from inheritune_lit.analysis.page import sentence
from inheritune_lit.analysis.report import write_report
from inheritune_lit.analysis.result import RESULT, Analysis, load_analysis
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.resolve import resolve
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.planning.advise import advice_text, advise, check_training
from inheritune_lit.studies.ablate import compare_criteria, layers_to_keep
from inheritune_lit.studies.ablate_args import HealingArgs


def study(
    ref: str,
    data: Path,
    out_dir: Path,
    options: AnalyzeOptions,
    *,
    compare: Path | None = None,
    advice: AdviceArgs | None = None,
    healing: HealingArgs | None = None,
    dry_run: bool = False,
) -> None:
    """Analyze a model, or take the analysis of it that is there, and write the page about it.

    Args:
        ref: any reference that ``inheritune slice`` reads.
        data: packed data, or a file or folder of text.
        out_dir: a new folder, or that of the same analysis.
        options: what to measure.
        compare: ``out_dir`` of another analysis, drawn beside this one.
        advice: training whose cost is told for every n; no advice when None.
        healing: training by which criteria are compared; no comparison when None.
        dry_run: print what it costs and stop.

    Raises:
        UserError: bad input.
    """
    other = load_analysis(compare) if compare is not None else None
    with resolve(ref) as resolved:
        reference, source = resolved.reference, resolved.source
        if advice is not None:
            check_training(advice, reference.config)
        if healing is not None:
            layers_to_keep(reference.config.n_layer, healing)
            _check_packed(data)
        analysis = _measured(source, data, out_dir, options) or analyze(ref, data, out_dir, options, dry_run)
        if analysis is None or dry_run:
            return
        text = advice_text(advise(analysis, reference, advice)) if advice is not None else None
    print(sentence(analysis))
    if text is not None:
        print(f"\n{text}\n")
    _write(analysis, out_dir, other, text)
    if healing is not None:
        compare_criteria(ref, analysis, data, out_dir, healing)


def _measured(source: str, data: Path, out_dir: Path, options: AnalyzeOptions) -> Analysis | None:
    """The analysis that ``out_dir`` holds, None where it holds none."""
    if not (out_dir / RESULT).is_file():
        return None
    analysis = load_analysis(out_dir)
    wanted = {"source": source, **asdict(options), "data": str(data)}
    found = {"source": analysis.model["source"], **analysis.settings}
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise UserError(
                f"{out_dir} holds an analysis with {name} {found.get(name)}, not {wanted[name]}; "
                "use the old value or give another --out_dir"
            )
    return analysis


def _check_packed(data: Path) -> None:
    manifest = read_manifest(data) if data.is_dir() else None
    if manifest is None or manifest.get("kind") != "packed_data":
        raise UserError(f"--criteria trains, and {data} is no packed data; make it with `inheritune prepare`")


def _write(analysis: Analysis, out_dir: Path, other: Analysis | None, advice: str | None) -> None:
    """Put page and figures beside ``analysis.json``, in the place of earlier ones."""
    with tempfile.TemporaryDirectory(prefix=".report-", dir=out_dir) as staging:
        names = write_report(analysis, Path(staging), other, advice)
        for name in names:
            os.replace(Path(staging) / name, out_dir / name)
    print(f"wrote {out_dir}/{', '.join(names)}")
