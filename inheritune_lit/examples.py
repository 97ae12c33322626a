"""Calls of each command that its ``--help`` shows, with what they do; a test parses every one."""

_OF_THE_PROGRAM = """\
inheritune plan openllama-3b --n 13 --tokens 8B  # what a run costs
inheritune slice openllama-3b --n 13  # the first 13 layers as a checkpoint
inheritune pretrain --config recipes/paper-openllama-3b-13l-1b.yaml  # train it
inheritune eval RUN/final --suite paper-table5  # score it
"""
_OF_COMMANDS = """\
inheritune init  # asks
inheritune init openllama-3b --n 13 --tokens 8B --gpu a6000  # asks nothing
inheritune references  # all of them
inheritune recipes  # all of them
inheritune plan openllama-3b --n 13 --tokens 8B --gpu a6000 --max_hours 8  # is that in reach?
inheritune plan --recipe recipes/paper-openllama-3b-13l-50b.yaml --price_per_hour 2  # a recipe's price
inheritune plan --ref smollm2-135m --n 15 --tokens 1M --measure  # timed on this machine
inheritune slice openllama-3b --n 13  # the first 13 of 26 layers, only their bytes downloaded
inheritune slice my-checkpoint/ --layers 0-8,20-25 --out_dir slices/ends  # layers by number
inheritune slice openllama-3b --n 13 --init random --out_dir slices/random  # a baseline
inheritune search openllama-3b --data data/text --out_dir search --n_min 10  # which layers to keep, for every n
inheritune slice openllama-3b --n 13 --search search  # the 13 layers that it found
inheritune export RUN/final --out_dir hf/my-model  # for AutoModelForCausalLM
inheritune prepare text/ --tokenizer_dir slices/ends --out_dir data/text  # a folder of text
inheritune prepare --config recipes/data/redpajama-1t-sample.yaml --tokenizer_dir slices/ends --out_dir \
data/redpajama-1b  # from the hub
inheritune prepare --verify data/text  # check a packed folder
inheritune teach openllama-3b --data data/text --out_dir data/teacher --max_seq_length 2048  # 50 bytes per token
inheritune pretrain --config recipes/paper-openllama-3b-13l-1b.yaml  # again after a stop: continues
inheritune pretrain --config recipes/paper-openllama-3b-13l-1b.yaml --train.micro_batch_size 2 --dry_run\
  # flags win over the recipe; only the plan
inheritune pretrain slices/ends --data data/text --out_dir runs/ends --train.max_tokens 100000000  # without a recipe
inheritune grow openllama-3b --data data/text --out_dir runs/grow --train.max_steps 1000\
  # until the reference's loss is met
inheritune eval RUN/final OTHER/final --suite paper-table5 --out_dir scores  # side by side
inheritune eval RUN/final --tasks piqa,mmlu --limit 100  # a quick look
inheritune eval RUN/final --val_data data/text  # held-out loss
inheritune eval --suite paper-table5 --fetch_data rows  # rows for a machine without a network
inheritune analyze openllama-3b --data text/ --out_dir analysis  # which layers are lazy, what each is worth
inheritune analyze RUN/final --data text/ --out_dir analysis-2 --compare analysis  # two models
inheritune ablate openllama-3b --data data/text --out_dir ablation --n 13  # which 13 layers heal best
inheritune reproduce text/ --scale tiny --dry_run  # what would be trained
inheritune report runs/  # every run in a folder, on one page
inheritune report RUN --watch 60  # follow one that continues
inheritune demo  # offline, a few minutes
"""

EXAMPLES: dict[str, dict[str, str]] = {}  # what each call does, by the command whose help shows it, or "inheritune"
for _shared, _text in (("inheritune", _OF_THE_PROGRAM), (None, _OF_COMMANDS)):
    for _call, _, _what in (line.partition("  # ") for line in _text.splitlines()):
        EXAMPLES.setdefault(_shared or _call.split()[1], {})[_call] = _what


def examples_of(command: str) -> str:
    """A command's examples as the end of its help, empty where there are none."""
    lines = [line for call, what in EXAMPLES.get(command, {}).items() for line in (f"  {call}", f"      {what}")]
    return "\n".join(["", "examples:", *lines, ""]) if lines else ""
