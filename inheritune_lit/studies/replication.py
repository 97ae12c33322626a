"""The reference's shape and a tokenizer made from the text, as a folder without weights."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.config import GPT2Config, save_lit_config
from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.prepare import prepare
from inheritune_lit.data.sources import find_sources, iter_documents
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.folders import make_folder, new_folder, replace_text
from inheritune_lit.studies.replication_grid import Experiment, Scale, experiments, find_scale, folder_of
from inheritune_lit.studies.replication_page import write_page
from inheritune_lit.studies.replication_results import Trained, read_results
from inheritune_lit.studies.tokenizer_training import train_tokenizer
from inheritune_lit.train.args import DistillArgs, EvalArgs, OptimizerArgs, PretrainArgs, TrainArgs
from inheritune_lit.train.pretrain import pretrain

_CHARACTERS = 8_000_000


def write_shape(folder: Path, text: str, scale: Scale) -> None:
    """Write ``model_config.yaml`` and a SentencePiece tokenizer.

    Args:
        folder: an existing folder to fill.
        text: what ``inheritune prepare`` reads; equal parts of each file make the tokenizer.
        scale: sizes.
    """
    config = GPT2Config(
        name="gpt2-replication",
        hf_config={"org": "local", "name": "gpt2-replication"},
        n_layer=scale.n_layer,
        n_embd=scale.n_embd,
        n_head=scale.n_head,
        intermediate_size=4 * scale.n_embd,
        block_size=scale.block_size,
        vocab_size=scale.vocab_size,
        padded_vocab_size=scale.vocab_size,
        norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP",
        gelu_approximate="tanh",
        parallel_residual=False,
        bias=False,
        norm_bias=False,
        rotary_percentage=0.0,
        scale_attn_by_inverse_layer_idx=True,
    )
    save_lit_config(config, folder)
    train_tokenizer(folder / "tokenizer.model", _lines(text), scale.vocab_size)


def _lines(text: str) -> Iterator[str]:
    for document in iter_documents(text, max_characters=_CHARACTERS):
        yield from filter(None, (line[:4000] for line in document.split("\n")))


RESULTS = "results.json"
_VAL_FRACTION, _VAL_SAMPLES = 0.02, 256


def reproduce(
    source: list[Path],
    out_dir: Path,
    scale: str = "small",
    seeds: int = 3,
    baseline_seeds: int = 1,
    only: list[str] | None = None,
    dry_run: bool = False,
) -> list[Trained]:
    """Train every model of the grid on equal data, and write the tables and figures as ``replication.md``.

    The same call continues; models that are done are kept. A seed is that of weights and of the order of samples: with
    one seed all models see the same samples.

    Args:
        source: folders or files of text.
        out_dir: folder for everything.
        scale: "small", "long" or "tiny".
        seeds: of the models of the main comparison.
        baseline_seeds: of the others.
        only: names of models; all when None, those that they begin with always.
        dry_run: print what will be trained and stop.

    Returns:
        What is trained, in the order of the grid.

    Raises:
        UserError: bad input.
    """
    sizes = find_scale(scale)
    grid = _chosen(experiments(sizes), only)
    if not 1 <= baseline_seeds <= seeds:
        raise UserError(
            f"--seeds {seeds} --baseline_seeds {baseline_seeds}; give 1 or more, and no more baselines' seeds"
        )
    for path in source:
        if not path.exists():
            raise UserError(f"no text at {path}; give folders or files that `inheritune prepare` reads")
        find_sources(path)  # or it would end after its folder was made
    todo = [(one, seed) for seed in range(1, seeds + 1) for one in grid if one.main or seed <= baseline_seeds]
    _announce(todo, sizes, out_dir)
    if dry_run:
        return []
    _check_same(out_dir, sizes)
    text = _gather(source, out_dir / "text")
    _stage(out_dir / "shape", "a tokenizer", lambda: _fill(out_dir / "shape", lambda f: write_shape(f, text, sizes)))
    _stage(
        out_dir / "data",
        "packed data",
        lambda: prepare(PrepareArgs(text, out_dir / "shape", out_dir / "data", val_fraction=_VAL_FRACTION)),
    )
    for number, (one, seed) in enumerate(todo, start=1):
        print(f"reproduce: {one.title}, seed {seed} ({number} of {len(todo)})", file=sys.stderr, flush=True)
        _train(one, seed, sizes, out_dir)
        results = read_results(out_dir, todo[:number])
        _write(
            out_dir / RESULTS, {"scale": {"name": scale, **asdict(sizes)}, "models": [asdict(each) for each in results]}
        )
    write_page(out_dir, scale, sizes, results)
    print(f"wrote {out_dir / 'replication.md'}")
    return results


def _chosen(grid: list[Experiment], only: list[str] | None) -> list[Experiment]:
    if only is None:
        return grid
    by_name = {one.name: one for one in grid}
    wanted: set[str] = set()
    for name in only:
        if name not in by_name:
            raise UserError(f"--only {name} is no model of the grid; give some of {', '.join(by_name)}")
        needed: str | None = name
        while needed is not None:
            wanted.add(needed)
            one = by_name[needed]
            if one.distill is not None:
                wanted.add("reference")
            needed = one.start.model
    return [one for one in grid if one.name in wanted]


def _announce(todo: list[tuple[Experiment, int]], scale: Scale, out_dir: Path) -> None:
    tokens = sum(one.steps for one, _ in todo) * scale.batch * scale.block_size
    print(
        f"reproduce: {len(todo)} trainings of up to {scale.n_layer} layers x {scale.n_embd}, {tokens:,} tokens in all, "
        f"in {out_dir}",
        file=sys.stderr,
        flush=True,
    )


def _check_same(out_dir: Path, scale: Scale) -> None:
    """Refuse a folder that was begun at another size."""
    path = out_dir / "scale.json"
    if not path.is_file():
        make_folder(out_dir, out_dir)
        if any(out_dir.iterdir()):
            raise UserError(f"{out_dir} holds something else than a replication; give another --out_dir")
        _write(path, asdict(scale))
    elif json.loads(path.read_text(encoding="utf-8")) != asdict(scale):
        raise UserError(f"{out_dir} was begun at another scale; give that one, or another --out_dir")


def _gather(source: list[Path], folder: Path) -> str:
    """One folder that links to all of the text, a domain each; the text itself where it is one folder or file."""
    if len(source) == 1:
        return str(source[0])
    folder.mkdir(exist_ok=True)
    for path in source:
        link = folder / path.name
        if not link.exists():
            link.symlink_to(path.resolve())
    return str(folder)


def _train(one: Experiment, seed: int, scale: Scale, out_dir: Path) -> None:
    run_dir, start = folder_of(out_dir, one.name, seed), folder_of(out_dir, f"{one.name}-start", seed)
    model = one.start.model
    cut = out_dir / "shape" if model is None else folder_of(out_dir, model, seed) / "final"
    options = {"init": "random", **one.start.options} if model is None else one.start.options
    _stage(start, "its start", lambda: slice_model(SliceArgs(str(cut), out_dir=start, seed=seed, **options)))
    train = TrainArgs(
        global_batch_size=scale.batch,
        micro_batch_size=scale.batch,
        max_seq_length=scale.block_size,
        max_steps=one.steps,
        lr_warmup_steps=max(1, one.steps // 20),
        min_lr=scale.lr / 10,
        log_interval=max(1, one.steps // 30),
        save_interval=200,
    )
    teacher = folder_of(out_dir, "reference", seed) / "final"
    distill = DistillArgs(teacher=str(teacher), **one.distill) if one.distill is not None else DistillArgs()
    result = pretrain(
        PretrainArgs(
            start,
            out_dir / "data",
            run_dir,
            train=train,
            eval=EvalArgs(interval=max(1, one.steps // 12), max_iters=max(1, _VAL_SAMPLES // scale.batch)),
            optimizer=OptimizerArgs(lr=scale.lr),
            distill=distill,
            precision="32-true",
            seed=seed,
        )
    )
    if result.final is None:  # SIGTERM: the same command goes on from there
        raise SystemExit(0)


def _stage(done: Path, what: str, work: Callable[[], Any]) -> None:
    if not done.exists():
        print(f"reproduce: making {what}", file=sys.stderr, flush=True)
        work()


def _fill(folder: Path, write: Callable[[Path], Any]) -> None:
    with new_folder(folder) as staging:
        write(staging)


def _write(path: Path, content: Any) -> None:
    replace_text(path, json.dumps(content, indent=2) + "\n")
