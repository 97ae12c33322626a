"""What growing starts from: arguments checked against the reference, the data and the devices; nothing is computed."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from inheritune_lit.checkpoint.folder import WEIGHTS
from inheritune_lit.checkpoint.manifest import sha256_file
from inheritune_lit.data.fits import check_fits_model
from inheritune_lit.data.mixture import make_mixture
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.errors import UserError
from inheritune_lit.grow.layers import GrowOptions, plan_layers
from inheritune_lit.grow.plan import RoundPlan, plan_rounds, plan_text, within_budget
from inheritune_lit.grow.start import attn_scale_of, check_start, layers_of
from inheritune_lit.grow.training import Training
from inheritune_lit.inherit.locate import Located
from inheritune_lit.planning.cards import peak_flops
from inheritune_lit.train.data_change import data_settings
from inheritune_lit.train.devices import build_fabric
from inheritune_lit.train.plan import block_size_of


@dataclass(frozen=True)
class Setup:
    """What is known before anything is spent.

    Attributes:
        plans: the rounds there can be.
        limit: what ends growing after them: "max_layers" or "max_flops".
        settings: everything that changes the outcome, the reference's identity aside.
    """

    located: Located
    out_dir: Path
    options: GrowOptions
    plans: list[RoundPlan]
    limit: str
    attn_scale: str
    settings: dict[str, Any]
    val_data: PackedDataset
    fabric: Fabric
    peak: float | None

    def plan_text(self, margin: float) -> str:
        name = torch.cuda.get_device_name(self.fabric.device) if self.fabric.device.type == "cuda" else "CPU"
        machine = f"{self.fabric.world_size} x {name}" if self.fabric.world_size > 1 else name
        kind, devices = self.options.new_layers, self.fabric.world_size
        return plan_text(self.located.reference, self.plans, kind, margin, machine, devices)

    def say(self, text: str) -> None:
        if self.fabric.global_rank == 0:
            print(text, file=sys.stderr, flush=True)


def prepare(located: Located, out_dir: Path, options: GrowOptions, training: Training, initial: Path | None) -> Setup:
    """Check everything that can be checked without computing."""
    reference = located.reference
    attn_scale = attn_scale_of(initial)
    start = layers_of(initial) if initial else None
    if initial and start:
        check_start(initial, start, reference, reference.tied, attn_scale)
    rounds = plan_layers(options, reference.config.n_layer, start)
    check_fits_model(training.data, reference.folder, reference.config.padded_vocab_size)
    block_size = block_size_of(training.train, reference.config)
    data = {split: PackedDataset(training.data, split, block_size, training.documents) for split in ("train", "val")}
    mixture = make_mixture(data["train"].domains, training.mixture.weights)
    if not 0 <= training.seed <= 2**64 - len(rounds):
        raise UserError(f"--seed is {training.seed}; give a number from 0 to {2**64 - len(rounds)}")
    fabric = build_fabric(training.devices, training.num_nodes, training.strategy, training.precision)
    peak = peak_flops(torch.cuda.get_device_name(fabric.device)) if fabric.device.type == "cuda" else None
    cost = (training, mixture, len(data["val"]), fabric.world_size, peak)
    every = plan_rounds(reference, rounds, attn_scale, *cost)
    plans = within_budget(every, options.max_flops)
    settings = {
        "grow_by": options.grow_by,
        "new_layers": options.new_layers,
        "old_layers": options.old_layers,
        "start_layers": list(rounds[0].layers),
        "start_sha256": sha256_file(initial / WEIGHTS) if initial else None,
        "device": fabric.device.type,
        **training.settings(),
        **data_settings(training.data, training.documents, mixture),
    }
    limit = "max_layers" if len(plans) == len(every) else "max_flops"
    return Setup(located, out_dir, options, plans, limit, attn_scale, settings, data["val"], fabric, peak)
