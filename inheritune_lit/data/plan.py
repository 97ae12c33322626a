"""What a call of ``inheritune prepare`` has to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.formats import format_of
from inheritune_lit.data.manifest import PackedManifest, PackedSettings, TokenizerRecord, find_packed_manifest
from inheritune_lit.data.shards import Shard, plan_shards
from inheritune_lit.data.sources import SourceFile, find_sources
from inheritune_lit.data.subset import Quota, quotas_of
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import check_vacant
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.tokenizer import Tokenizer

_BYTES_PER_TOKEN = 3.5  # English and code have 3 to 4


@dataclass(frozen=True)
class PreparePlan:
    """What a call has to do.

    Attributes:
        args: the call's arguments.
        sources: new files.
        packed_before: manifest of the output that they are appended to; None where nothing is there.
        shards: of the new files.
        quotas: of a subset.
        settings: what every call on the same output has to agree on.
    """

    args: PrepareArgs
    sources: list[SourceFile]
    packed_before: PackedManifest | None
    shards: list[Shard]
    quotas: list[Quota]
    settings: PackedSettings

    def __str__(self) -> str:
        args, tokenizer, dtype = self.args, self.settings.tokenizer, self.settings.dtype
        assert args.tokenizer_dir is not None, "PrepareArgs checks it"
        domains = sorted({file.domain for file in self.sources})
        kinds = [format_of(file.name, args) for file in self.sources]
        text_bytes = sum(file.bytes * kind.text_share for file, kind in zip(self.sources, kinds, strict=True) if kind)
        tokens = min(text_bytes / _BYTES_PER_TOKEN, args.max_tokens or text_bytes)
        size = tokens * {"uint16": 2, "int32": 4}[dtype]
        added = f", beside {len(self.packed_before.sources)} packed before" if self.packed_before else ""
        lines = [
            f"prepare {sum(file.bytes for file in self.sources):,} bytes in {len(self.sources)} files{added}, "
            f"{len(domains)} domains ({', '.join(domains)})",
            f"        with {args.tokenizer_dir / tokenizer.file} ({tokenizer.vocab_size:,} ids, {dtype}), "
            f"{args.val_fraction:.2%} for validation",
            f"        to {args.out_dir}, about {tokens / 1e6:,.1f}M tokens, {size / 1e6:,.1f} MB",
        ]
        lines += [f"        {quota.tokens:,} tokens of {', '.join(quota.domains)}, at random" for quota in self.quotas]
        if args.drop_duplicates:
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
    settings = PackedSettings(
        TokenizerRecord(tokenizer.path.name, tokenizer.sha256(), tokenizer.vocab_size, tokenizer.eos_id),
        "uint16" if tokenizer.vocab_size <= 2**16 else "int32",
        args.content_settings(),
    )
    before, new = find_packed_manifest(args.out_dir), sources
    if before is None or not before.sources:
        check_vacant(args.out_dir)
    else:
        before.check_same(settings, f"{args.out_dir} was made with", "give another --out_dir or remove it")
        new = _new_sources(args.out_dir, before, sources)
        if new and args.max_tokens is not None:
            raise UserError(
                f"{args.out_dir} is a random subset of {len(before.sources)} files, which {new[0].path} would "
                "change; give another --out_dir"
            )
    quotas = quotas_of(args, sorted({file.domain for file in sources}))
    return PreparePlan(args, new, before, plan_shards(new, args), quotas, settings)


def _new_sources(out_dir: Path, manifest: PackedManifest, sources: Sequence[SourceFile]) -> list[SourceFile]:
    """Returns the sources that are not packed yet.

    Raises:
        UserError: one that is packed has changed or is gone.
    """
    files = {file.name: file for file in sources}
    advice = "give another --out_dir, or put the former file back"
    for entry in manifest.sources:
        file = files.pop(entry.name, None)
        if file is None:
            raise UserError(f"{entry.path} is in {out_dir} and no longer in the source; {advice}")
        if (file.version, file.bytes) == (entry.version, entry.bytes):
            continue
        # A copy has another time stamp; only the content counts.
        if file.on_hub or file.bytes != entry.bytes or sha256_file(Path(file.path)) != entry.sha256:
            raise UserError(f"{file.path} has changed since {out_dir} was made; {advice}")
    return list(files.values())
