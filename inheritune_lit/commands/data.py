"""``inheritune prepare``."""

from pathlib import Path
from typing import Literal


def prepare_command(
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
    cluster: str | None = None,
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
        cluster: address of a Dask scheduler, such as tcp://host:8786, whose workers do the work.
        verify: check this packed folder against its manifest and do nothing else.
        dry_run: print the plan and stop.
    """
    given = locals()
    import logging

    from inheritune_lit.data.args import PrepareArgs

    args = PrepareArgs(**given)
    from inheritune_lit.data.prepare import prepare

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if printed := str(prepare(args)):
        print(printed)
