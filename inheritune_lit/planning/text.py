"""A plan in words."""

from inheritune_lit.model.devices import USABLE
from inheritune_lit.planning.estimate import Disk, Job, OnCard, within
from inheritune_lit.planning.measure import Measured
from inheritune_lit.train.gpus import ASSUMED_MFU


def plan_text(
    job: Job,
    disk: Disk,
    cards: list[OnCard],
    price_per_hour: float | None,
    max_hours: float | None,
    measured: Measured | None,
) -> str:
    """The whole plan.

    Args:
        job: what is planned.
        disk: what it needs there.
        cards: what it needs on each kind of card.
        price_per_hour: of one card.
        max_hours: time that is wished for.
        measured: on this machine, None where nothing was.
    """
    subject, train = job.subject, job.train
    together = train.global_batch_size * job.block_size
    lines = [
        f"{subject.title}: {subject.parameters:,} parameters, {subject.non_embedding_parameters:,} of them not "
        "embeddings or head",
        f"{job.tokens:,} tokens in {job.tokens // together:,} steps of {train.global_batch_size} x {job.block_size:,} "
        f"= {together:,}",
        f"{job.flops_per_token / 1e9:.2f} GFLOP a token, {job.flops:.1e} in all",
        "",
        *_memory_lines(job),
        f"disk: {_disk_text(disk)}",
        "",
        *_card_table(job, cards, price_per_hour),
        "",
        _assumption(job),
        f"of a card's memory {1 - USABLE:.0%} is left to CUDA's context, workspace and fragments",
    ]
    if max_hours is not None:
        lines += [
            "",
            f"in {max_hours:g} hour{'s' * (max_hours != 1)}:",
            *(f"  {_wish(each, max_hours)}" for each in cards),
        ]
    if measured is not None:
        lines += ["", _measured_text(job, measured)]
    return "\n".join(lines)


def _memory_lines(job: Job) -> list[str]:
    memory = job.memory()
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        f"{job.optimizer.name} state": memory.optimizer,
        "bf16 copies": memory.casts,
        "activations": memory.activations,
        "logits": memory.loss,
    }
    told = ", ".join(f"{name} {_size(count)}" for name, count in parts.items() if count)
    how = f"{job.precision}, compiled" + (", recomputing" if job.recomputes else "")
    return [f"memory at a micro-batch of {job.train.micro_batch_size} ({how}): {_size(memory.total)}", f"  {told}"]


def _disk_text(disk: Disk) -> str:
    data = f"{_size(disk.data)} of packed data, " if disk.data is not None else "packed data besides, "
    total = (disk.data or 0) + disk.state + disk.checkpoints
    return (
        f"{_size(total)} ({data}{_size(disk.state)} to continue from, {_size(disk.checkpoints)} of checkpoints; the "
        "raw text besides)"
    )


def _card_table(job: Job, cards: list[OnCard], price_per_hour: float | None) -> list[str]:
    samples = job.train.global_batch_size // job.devices
    titles = ["card", "memory", "largest micro-batch", f"dividing {samples}", "hours"]
    rows = [titles + ["cost"] * (price_per_hour is not None)]
    for each in cards:
        row = [each.card.name, _size(each.card.memory), _fits(job, each), str(each.dividing_micro_batch or "-")]
        row.append(_hours(each.hours) if each.job else "-")
        if price_per_hour is not None:
            row.append(f"{each.hours * price_per_hour * job.devices:,.0f}" if each.job else "-")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _fits(job: Job, each: OnCard) -> str:
    if each.job is None:
        return "does not fit"
    extra = [" recomputing"] if each.job.recomputes and not job.recomputes else []
    extra += [f" {each.job.optimizer.name}"] if each.job.optimizer.name != job.optimizer.name else []
    return f"{each.micro_batch_size}{','.join(extra)}"


def _assumption(job: Job) -> str:
    share = f"{job.mfu or ASSUMED_MFU:.0%} of the cards' dense bf16 peak"
    source = "as given with --mfu" if job.mfu else "assumed, not measured: --measure times this machine"
    cards = f", {job.devices} cards of a kind" if job.devices > 1 else ""
    return f"hours at {share} ({source}){cards}"


def _wish(each: OnCard, hours: float) -> str:
    name = each.card.name
    if each.job is None:
        return f"{name}: does not fit"
    if each.hours <= hours:
        return f"{name}: yes, {_hours(each.hours)} hours"
    wish = within(each.job, each.card, hours)
    reach = (
        f"out of reach, {wish.mfu:.1f} times the card's peak"
        if wish.mfu > 1
        else f"only at {wish.mfu:.0%} of the card's peak"
    )
    layers = f"all of them with {wish.n_layer} layer{'s' * (wish.n_layer > 1)}" if wish.n_layer else ""
    return f"{name}: {reach}; what fits: {wish.tokens / 1e9:.3g}B tokens{', or ' * bool(layers)}{layers}"


def _measured_text(job: Job, measured: Measured) -> str:
    share = f", {measured.mfu:.0%} of its peak" if measured.mfu is not None else ""
    hours = job.tokens / measured.tokens_per_s / 3600 / job.devices
    return (
        f"measured here ({measured.machine}): {measured.tokens_per_s:,.0f} tokens/s{share}, so {_hours(hours)} hours; "
        f"{_size(measured.memory)} of memory, {_size(measured.predicted)} predicted"
    )


def _hours(hours: float) -> str:
    if hours < 0.1:
        return "< 0.1"
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _size(count: int) -> str:
    if count >= 1e10:
        return f"{count / 1e9:,.0f} GB"
    return f"{count / 1e9:.2g} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
