"""What a call of ``inheritune prepare`` has to do, and the folder where calls before have left their work."""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.formats import format_of
from inheritune_lit.data.manifest import PackedManifest, PackedSettings, TokenizerRecord, find_packed_manifest
from inheritune_lit.data.shards import DONE, Shard, ShardRecord, ShardSettings, plan_shards
from inheritune_lit.data.sources import SourceFile, check_distinct, find_sources
from inheritune_lit.data.subset import Quota, quotas_of
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import check_replaceable, check_vacant, explain_full_disk, own_folder, remove, restore
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.io.records import read_record
from inheritune_lit.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_BYTES_PER_TOKEN = 3.5  # English and code have 3 to 4


@dataclass(frozen=True)
class PreparePlan:
    """What a call has to do: new source files and their shards, and the output that they are appended to, if any."""

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
        kinds = ((file, format_of(file.name, args)) for file in self.sources)
        text_bytes = sum(file.bytes * kind.text_share for file, kind in kinds if kind)
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
    """Finds source files, refuses what does not fit what is packed already, and cuts the new ones into shards."""
    assert args.source and args.tokenizer_dir and args.out_dir, "PrepareArgs checks it"
    sources, tokenizer = find_sources(args.source, args), Tokenizer(args.tokenizer_dir)
    if args.end_of_document and (tokenizer.eos_id is None or tokenizer.eos_id >= tokenizer.vocab_size):
        fault = f"{tokenizer.path} defines no EOS token; name one there"
        if tokenizer.eos_id is not None:
            fault = f"the EOS id of {args.tokenizer_dir} is {tokenizer.eos_id}, {tokenizer.path.name} has only "
            fault += f"{tokenizer.vocab_size} ids; correct its configuration"
        raise UserError(f"{fault} or give --end_of_document false")
    settings = PackedSettings(
        TokenizerRecord(tokenizer.path.name, tokenizer.sha256(), tokenizer.vocab_size, tokenizer.eos_id),
        "uint16" if tokenizer.vocab_size <= 2**16 else "int32",
        args.content_settings(),
    )
    before, new = find_packed_manifest(args.out_dir), sources
    if not args.drop_duplicates:
        check_distinct(sources, {source.name: source.sha256 for source in before.sources} if before else {})
    if before is None or not before.sources:
        check_vacant(args.out_dir)
    else:
        check_replaceable(args.out_dir)
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
    """Returns the sources that are not packed yet; one that is packed and has changed or is gone is refused."""
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


class WorkDir:
    """``.<name of the output>.prepare``: shards, the ``ShardSettings`` that they follow (``plan``), and a lock.

    Nothing is made until it is locked. It lies beside the folder itself where the output is a link to one.
    """

    def __init__(self, out_dir: Path) -> None:
        self.out_dir, self._real = out_dir, Path(os.path.realpath(out_dir))
        self.path = self._real.with_name(f".{self._real.name}.prepare")
        self.shards, self.plan = self.path / "shards", self.path / "plan.json"

    def finished(self, shards: Sequence[Shard]) -> list[Shard]:
        """Returns the shards whose folders are whole."""
        return [shard for shard in shards if (self.shards / shard.id / DONE).is_file()]

    def remove_damaged(self, plan: PreparePlan) -> None:
        """Removes shards whose files are not as their records say, so that they are made again."""
        for folder in (self.shards / shard.id for shard in plan.shards):
            try:
                files = ShardRecord.read(folder).files if os.path.lexists(folder) else {}
                for name, sha256 in files.items():
                    if not (folder / name).is_file() or sha256_file(folder / name) != sha256:
                        raise UserError(f"{folder / name} is not as it was written; the shard is made again")
            except UserError as error:
                logger.warning(f"inheritune: warning: {error}")
                remove(folder)

    def read_settings(self) -> ShardSettings | None:
        """Returns what an earlier call was started with, or None."""
        about = "the plan of a preparation", f"remove {self.path}"
        return read_record(self.plan, ShardSettings, *about) if self.plan.is_file() else None

    def restore_output(self) -> None:
        """Undoes or completes the replacement of a former output, where the last call was killed in the middle."""
        if self.path.is_dir():
            with self.locked():
                restore(self._real)

    def remove(self) -> None:
        """Removes everything; shards leave their name first, so that none is taken for whole later."""
        with suppress(OSError):
            remove(self.shards)
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and keeps other calls out while the block runs; an empty one is removed afterwards."""
        with explain_full_disk(self.path), own_folder(self.path, self.out_dir):
            try:
                self.shards.mkdir(exist_ok=True)
                yield
            finally:
                for leftover in (self.path / "probe", *self.shards.glob("*.tmp-*")):
                    shutil.rmtree(leftover, ignore_errors=True)
                if not any(self.shards.glob(f"*/{DONE}")):
                    self.remove()
