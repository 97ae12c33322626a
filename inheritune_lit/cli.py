"""The ``inheritune`` command: one typed function a subcommand, heavy imports inside them."""

import sys
from pathlib import Path
from typing import Literal

from jsonargparse import CLI, ArgumentParser, set_parsing_settings

from inheritune_lit import __version__
from inheritune_lit.arguments import spell_out
from inheritune_lit.errors import UserError
from inheritune_lit.train.args import EvalArgs, MixtureArgs, OptimizerArgs, SpeedArgs, TrainArgs


def slice_reference(
    ref: str,
    n: int | None = None,
    layers: str | None = None,
    out_dir: Path | None = None,
    init: Literal["inherit", "random", "stack", "hybrid-stack", "half-width"] = "inherit",
    parts: str = "attn,mlp,norm",
    embeddings: bool = True,
    final_norm: bool = True,
    head: bool = True,
    attn_scale: Literal["position", "keep"] = "position",
    hash_sources: bool = True,
    seed: int = 1337,
    dry_run: bool = False,
) -> None:
    """Build a small model out of the layers of a pretrained one.

    Args:
        ref: the reference: a known name (see ``inheritune references``) or hub repository, with ``@`` and a branch, tag
            or commit behind it where it shall not be the main branch; a folder (Hugging Face or litgpt) or a GGUF file.
        n: take the first n layers; short for ``--layers first:n``.
        layers: which layers to take: first:n, last:n, middle:n, alternate, last, 0:26:2, or 0,3,5-9, joined by +.
        out_dir: folder of the new litgpt checkpoint; ``checkpoints/<org>/<name>-<n>l`` when not given.
        init: "inherit" copies the reference's weights; "random" takes only its shape and tokenizer; "stack" repeats all
            its layers up to n, "hybrid-stack" its first n/2; "half-width" takes half of the heads and of the MLP.
        parts: sub-modules of a layer that are inherited, any of attn,mlp,norm; the rest is random.
        embeddings: inherit the token embeddings.
        final_norm: inherit the norm before the head.
        head: inherit the prediction head.
        attn_scale: for GPT-2 models whose attention logits are divided by the layer's number: "position" takes the new
            number, as the paper's code does, "keep" the one in the reference.
        hash_sources: record the SHA-256 of the reference's files; local files are read whole for it.
        seed: seed of random weights.
        dry_run: print the plan and stop.
    """
    from inheritune_lit.inherit.options import parse_parts
    from inheritune_lit.inherit.slice import slice_reference as run

    run(
        ref,
        n=n,
        layers=layers,
        out_dir=out_dir,
        init=init,
        parts=parse_parts(parts),
        embeddings=embeddings,
        final_norm=final_norm,
        head=head,
        attn_scale=attn_scale,
        hash_sources=hash_sources,
        seed=seed,
        dry_run=dry_run,
    )


def list_references() -> None:
    """List the named references: layers, width, parameters, size on disk, licence."""
    from inheritune_lit.references import reference_table

    print(reference_table())


def export(
    checkpoint_dir: Path, out_dir: Path, max_shard_bytes: int = 5_000_000_000, licence: str | None = None
) -> None:
    """Write a checkpoint as a Hugging Face folder.

    Args:
        checkpoint_dir: litgpt checkpoint, such as a slice or the ``final/`` of a run.
        out_dir: the new folder.
        max_shard_bytes: bytes a safetensors file.
        licence: licence for the model card, such as apache-2.0; the named reference's when not given.
    """
    from inheritune_lit.checkpoint.export import export as run

    run(checkpoint_dir, out_dir, max_shard_bytes=max_shard_bytes, licence=licence)


def prepare(
    source: str | None = None,
    tokenizer_dir: Path | None = None,
    out_dir: Path | None = None,
    val_fraction: float = 0.01,
    end_of_document: bool = True,
    text_field: str = "text",
    txt_documents: Literal["file", "line"] = "file",
    domain: str | None = None,
    domain_field: str | None = None,
    parse_special_tokens: bool = False,
    drop_duplicates: bool = False,
    max_document_bytes: int = 1 << 27,
    max_tokens: int | None = None,
    mixture: dict[str, float] | None = None,
    seed: int = 1337,
    num_workers: int | None = None,
    node_rank: int | None = None,
    num_nodes: int | None = None,
    verify: Path | None = None,
    dry_run: bool = False,
) -> None:
    """Turn text into packed tokens. The same command again continues a stopped run, and adds files that are new.

    Args:
        source: folder or file of .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt, a domain each folder or file name;
            or a data set of the hub, hf://datasets/org/name[@revision][/folder].
        tokenizer_dir: folder with the reference's tokenizer, such as a slice.
        out_dir: folder of the packed data.
        val_fraction: share of the documents kept for validation, chosen by their hash.
        end_of_document: write the tokenizer's EOS token after each document.
        text_field: name of the text in a row; dots lead into nested fields.
        txt_documents: whether a document is a .txt file or a line of it.
        domain: one domain's name for all files.
        domain_field: field of a row that names its domain, such as meta.redpajama_set_name.
        parse_special_tokens: give a text that spells a special token, such as <|endoftext|>, that token.
        drop_duplicates: keep one of the documents with the same token ids; 40 bytes of memory a document.
        max_document_bytes: longer rows are left out and counted; so is text over 8 MB that cannot be encoded in parts:
            all such with a tokenizer.json, with a tokenizer.model only what has no spaces.
        max_tokens: take a random subset of the documents with this many tokens; all when not given.
        mixture: parts of the subset by domain, such as '{"cc": 67, "c4": 15}', where cc stands for cc_2019-30 too; in
            proportion to the corpus when not given.
        seed: seed of the subset.
        num_workers: processes; the cores of this machine when not given.
        node_rank: which share of the work to do, counted from 0; as srun or torchrun say when not given.
        num_nodes: number of shares. The same command with --num_nodes 1 then checks and joins them.
        verify: check this packed folder against its manifest and do nothing else.
        dry_run: print the plan and stop.
    """
    if verify is not None:
        from inheritune_lit.data.verify import verify as check

        check(verify)
        return
    for name, value in (("source", source), ("tokenizer_dir", tokenizer_dir), ("out_dir", out_dir)):
        if value is None:
            raise UserError(f"--{name} is required; see `inheritune prepare --help`")
    from inheritune_lit.data.prepare import prepare as run

    run(
        source,
        tokenizer_dir,
        out_dir,
        val_fraction=val_fraction,
        end_of_document=end_of_document,
        text_field=text_field,
        txt_documents=txt_documents,
        domain=domain,
        domain_field=domain_field,
        parse_special_tokens=parse_special_tokens,
        drop_duplicates=drop_duplicates,
        max_document_bytes=max_document_bytes,
        max_tokens=max_tokens,
        mixture=mixture,
        seed=seed,
        num_workers=num_workers,
        node_rank=node_rank,
        num_nodes=num_nodes,
        dry_run=dry_run,
    )


def pretrain(
    initial_checkpoint_dir: Path,
    data: Path,
    out_dir: Path,
    n: int | None = None,
    train: TrainArgs = TrainArgs(),
    eval: EvalArgs = EvalArgs(),
    optimizer: OptimizerArgs = OptimizerArgs(),
    speed: SpeedArgs = SpeedArgs(),
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] | None = None,
    devices: int | Literal["auto"] = 1,
    num_nodes: int = 1,
    strategy: Literal["auto", "ddp", "fsdp", "hybrid"] = "auto",
    mixture: MixtureArgs = MixtureArgs(),
    documents: Literal["packed", "separate"] = "packed",
    allow_data_change: bool = False,
    seed: int = 1337,
    logger_name: Literal["csv", "tensorboard", "wandb", "mlflow"] = "csv",
    dry_run: bool = False,
) -> None:
    """Continue the training of a checkpoint on packed data. The same command again continues a stopped run.

    Args:
        initial_checkpoint_dir: litgpt checkpoint to start from, such as a slice.
        data: packed data from ``inheritune prepare``.
        out_dir: run folder: ``metrics.csv``, resumable state, and ``final/``, the trained checkpoint.
        n: number of layers, for recipes with ``{n}`` in their paths.
        train: budget, batches and schedule.
        eval: validation.
        optimizer: which one, and its settings.
        speed: kernels, compiler, memory.
        precision: bf16-mixed on a GPU, 32-true on CPU, when not given; bf16-true keeps fp32 copies of the weights.
        devices: GPUs (or CPU processes) a node, or "auto" for every GPU.
        num_nodes: nodes, each started with this command by torchrun or SLURM.
        strategy: ddp, or fsdp to shard the model over all devices, or hybrid to shard within nodes only.
        mixture: how often each domain is drawn.
        documents: "packed" cuts text into samples wherever they end, across documents; "separate" keeps each sample
            within one document and pads what is left.
        allow_data_change: continue a run although its data, mixture or ``documents`` is another than when it was
            started; from the next step on the new one counts.
        seed: seed of the data order.
        logger_name: a logger beside ``metrics.csv``.
        dry_run: print the plan and stop.
    """
    from inheritune_lit.train.pretrain import pretrain as run
    from inheritune_lit.train.sweep import at_depth

    run(
        **at_depth({"initial_checkpoint_dir": initial_checkpoint_dir, "out_dir": out_dir}, n),
        data=data,
        train=train,
        eval=eval,
        optimizer=optimizer,
        speed=speed,
        mixture=mixture,
        documents=documents,
        allow_data_change=allow_data_change,
        precision=precision,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        seed=seed,
        logger_name=logger_name,
        dry_run=dry_run,
    )


def evaluate(
    checkpoint_dir: list[Path],
    tasks: str | None = None,
    val_data: Path | None = None,
    val_blocks: int | None = None,
    max_seq_length: int | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 16,
    dtype: Literal["float32", "bfloat16"] = "float32",
    out_dir: Path | None = None,
) -> None:
    """Score checkpoints on lm-eval tasks and on held-out packed data.

    Args:
        checkpoint_dir: one or more litgpt checkpoints.
        tasks: lm-eval task names or task YAML files, separated by commas.
        val_data: packed data whose validation part is scored.
        val_blocks: samples of it; all when not given.
        max_seq_length: tokens a sample of it; the model's block size, at most 2048, when not given.
        data_dir: folder of local task rows, ``<task>/<split>.jsonl``; the hub's data sets when not given.
        limit: rows a task (a subject, for MMLU); all when not given.
        num_fewshot: examples in the prompt; the task's default when not given, 5 for MMLU.
        batch_size: sequences a forward pass.
        dtype: floating-point type of the weights.
        out_dir: folder for results.json and results.md; printed only when not given.
    """
    from inheritune_lit.evaluation.harness import evaluate as run

    run(
        checkpoint_dir,
        tasks=tasks,
        val_data=val_data,
        val_blocks=val_blocks,
        max_seq_length=max_seq_length,
        data_dir=data_dir,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        dtype=dtype,
        out_dir=out_dir,
    )


def demo(out_dir: Path = Path("runs/demo")) -> None:
    """Run the whole recipe in miniature, offline, on text every Python installation carries.

    Args:
        out_dir: folder for everything the demo makes; finished parts are kept when it is run again.
    """
    from inheritune_lit.demo.run import run_demo

    run_demo(out_dir)


COMMANDS = {
    "references": list_references,
    "slice": slice_reference,
    "export": export,
    "prepare": prepare,
    "pretrain": pretrain,
    "eval": evaluate,
    "demo": demo,
}


class _Parser(ArgumentParser):
    """Bad arguments are one line on stderr and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        prog = self.prog.replace(" [options]", "")
        raise UserError(f"{' '.join(message.split())}; see `{prog} --help`")


def main(args: list[str] | None = None) -> int:
    """Run one command.

    Args:
        args: command line without the program's name; ``sys.argv`` when None.

    Returns:
        Exit code: 0 for success, 2 for bad input, 130 for Ctrl-C.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    args = spell_out(sys.argv[1:] if args is None else args, COMMANDS)
    try:
        CLI(COMMANDS, args=args, as_positional=False, parser_class=_Parser, prog="inheritune", version=__version__)
    except UserError as error:
        print(f"inheritune: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("inheritune: interrupted", file=sys.stderr)
        return 130
    return 0
