"""What a call of ``inheritune prepare`` has to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.formats import format_of
from inheritune_lit.data.shards import Shard, plan_shards
from inheritune_lit.data.sources import SourceFile, find_sources
from inheritune_lit.data.subset import Quota, quotas_of
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import check_vacant
from inheritune_lit.io.manifest import read_manifest, sha256_file
from inheritune_lit.io.settings_guard import differences
from inheritune_lit.tokenizer import Tokenizer

_BYTES_PER_TOKEN = 3.5  # English and code have 3 to 4


@dataclass(frozen=True)
class PreparePlan:
    """What a call has to do.

    Attributes:
        args: the call's arguments.
        tokenizer_dir, out_dir: those of the arguments.
        sources: new files.
        packed_before: manifest of the output that they are appended to; None where nothing is there.
        shards: of the new files.
        quotas: of a subset.
        settings: what every call on the same output has to agree on: the manifest's tokenizer, dtype and options.
    """

    args: PrepareArgs
    tokenizer_dir: Path
    out_dir: Path
    sources: list[SourceFile]
    packed_before: dict[str, Any] | None
    shards: list[Shard]
    quotas: list[Quota]
    settings: dict[str, Any]

    def __str__(self) -> str:
        tokenizer, dtype = self.settings["tokenizer"], self.settings["dtype"]
        domains = sorted({file.domain for file in self.sources})
        kinds = [format_of(file.name, self.args) for file in self.sources]
        text_bytes = sum(file.bytes * kind.text_share for file, kind in zip(self.sources, kinds, strict=True) if kind)
        tokens = text_bytes / _BYTES_PER_TOKEN
        if self.args.max_tokens is not None:
            tokens = min(tokens, self.args.max_tokens)
        size = tokens * {"uint16": 2, "int32": 4}[dtype]
        added = f", beside {len(self.packed_before['sources'])} packed before" if self.packed_before else ""
        lines = [
            f"prepare {sum(file.bytes for file in self.sources):,} bytes in {len(self.sources)} files{added}, "
            f"{len(domains)} domains ({', '.join(domains)})",
            f"        with {self.tokenizer_dir / tokenizer['file']} ({tokenizer['vocab_size']:,} ids, "
            f"{dtype}), {self.args.val_fraction:.2%} for validation",
            f"        to {self.out_dir}, about {tokens / 1e6:,.1f}M tokens, {size / 1e6:,.1f} MB",
        ]
        lines += [f"        {quota.tokens:,} tokens of {', '.join(quota.domains)}, at random" for quota in self.quotas]
        if self.args.drop_duplicates:
            lines.append("        without exact duplicates: 40 bytes of memory per document while merging")
        return "\n".join(lines)


def make_plan(args: PrepareArgs) -> PreparePlan:
    """Finds source files, compares them with what is packed already, and cuts the new ones into shards.

    Raises:
        UserError: sources, tokenizer or output cannot be used, or do not fit what is packed already.
    """
    assert args.source and args.tokenizer_dir and args.out_dir, "PrepareArgs checks it"
    sources, tokenizer = find_sources(args.source, args), Tokenizer(args.tokenizer_dir)
    if args.end_of_document and tokenizer.eos_id is None:
        raise UserError(f"{tokenizer.path} defines no EOS token; name one there or give --end_of_document false")
    if args.end_of_document and (tokenizer.eos_id or 0) >= tokenizer.vocab_size:
        raise UserError(
            f"the EOS id of {args.tokenizer_dir} is {tokenizer.eos_id}, {tokenizer.path.name} has only "
            f"{tokenizer.vocab_size} ids; correct its configuration or give --end_of_document false"
        )
    settings = {
        "tokenizer": {
            "file": tokenizer.path.name,
            "sha256": tokenizer.sha256(),
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
        },
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "int32",
        "options": args.content_settings(),
    }
    before = _read_packed(args.out_dir, settings)
    new = _new_sources(args.out_dir, before, sources) if before else sources
    if before and new and args.max_tokens is not None:
        raise UserError(
            f"{args.out_dir} is a random subset of {len(before['sources'])} files, which {new[0].path} would "
            "change; give another --out_dir"
        )
    quotas = quotas_of(args, sorted({file.domain for file in sources}))
    return PreparePlan(args, args.tokenizer_dir, args.out_dir, new, before, plan_shards(new, args), quotas, settings)


def _read_packed(out_dir: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the manifest of the packed data at ``out_dir``, or None where nothing is there.

    Raises:
        UserError: something else is there; or it was made with another tokenizer or other options.
    """
    manifest = read_manifest(out_dir) if out_dir.is_dir() else None
    if manifest is None or manifest.get("kind") != "packed_data" or "sources" not in manifest:
        check_vacant(out_dir)
        return None
    if manifest["tokenizer"]["sha256"] != settings["tokenizer"]["sha256"]:
        raise UserError(f"{out_dir} was made with another tokenizer; give another --out_dir or remove it")
    for name, old, new in differences(manifest["options"], settings["options"]):
        raise UserError(
            f"{out_dir} was made with other options: --{name} was {old}, now it is {new}; give another --out_dir or "
            "remove it"
        )
    return manifest


def _new_sources(out_dir: Path, manifest: Mapping[str, Any], sources: Sequence[SourceFile]) -> list[SourceFile]:
    """Returns the sources that are not packed yet.

    Raises:
        UserError: one that is packed has changed or is gone.
    """
    files = {file.name: file for file in sources}
    advice = "give another --out_dir, or put the former file back"
    for entry in manifest["sources"]:
        file = files.pop(entry["name"], None)
        if file is None:
            raise UserError(f"{entry['path']} is in {out_dir} and no longer in the source; {advice}")
        if (file.version, file.bytes) == (entry["version"], entry["bytes"]):
            continue
        # A copy has another time stamp; only the content counts.
        if file.on_hub or file.bytes != entry["bytes"] or sha256_file(Path(file.path)) != entry["sha256"]:
            raise UserError(f"{file.path} has changed since {out_dir} was made; {advice}")
    return list(files.values())
