"""``inheritune slice --repair linear``: at each cut, a linear map that makes up for the layers that are left out.

It goes into the last weights of the MLP before the cut, so that any tool loads the slice, as in ReplaceMe
(arXiv 2505.02819) and LinearPatch (arXiv 2505.24680). What it is worth: docs/best-student.md.
"""

from dataclasses import replace

import torch
from torch import Tensor

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.plan import Plan
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.inherit.stream import LayerStream, run_with_outputs
from inheritune_lit.io.progress import Progress

_RIDGE = 0.1  # of the mean square of the MLP's outputs: what pulls the map to the identity
_SHARE = 0.5  # of the fitted map, the rest is the identity: all of it fits other text worse


def is_repairable(reference: ReferenceModel) -> bool:
    """Whether the MLPs end in weights that write to the residual stream."""
    return reference.config.mlp_class_name != "LLaMAMoE" and not reference.config.post_mlp_norm


def check_repairable(reference: ReferenceModel) -> None:
    """Refuses models of which ``is_repairable`` is False."""
    if not is_repairable(reference):
        what = "puts a norm behind them" if reference.config.post_mlp_norm else "has experts"
        raise UserError(f"--repair linear changes the last weights of MLPs, and {reference.name} {what}; leave it out")


@torch.no_grad()
def repaired(plan: Plan, reference: ReferenceModel, tokens_BT: Tensor) -> Plan:
    """Returns the plan of a slice of an opened reference, layers rising, with the maps that some sequences ask for.

    With it, what a layer behind a cut is given is nearer to what the reference gives it. From the first cut to the
    last, each map is fitted on the states that those before it make. Layers are in memory one at a time, each once.
    """
    layers, depth = plan.layers or [], reference.config.n_layer
    following = dict(zip(layers, [*layers[1:], depth], strict=True))
    tensors, kept = dict(plan.tensors), -1
    with Progress(f"repair {plan.name}", depth, "layer") as progress:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        stream = LayerStream(reference, tokens_BT.shape[1], device)
        student_BTC = reference_BTC = stream.embed(tokens_BT)
        for layer in range(depth):
            with stream.layer(layer) as (block, run):
                if layer in following:
                    kept, (student_BTC, outputs_BTC) = layer, run_with_outputs(block, run, student_BTC)
                reference_BTC = run(reference_BTC)
            progress.update()
            if layer > kept >= 0 and layer + 1 == following[kept]:
                map_CC = fit_map(outputs_BTC, student_BTC, reference_BTC)
                student_BTC = with_map(student_BTC, outputs_BTC, map_CC)
                prefix = f"transformer.h.{layers.index(kept)}.mlp.proj."
                for name in tensors.keys() & {f"{prefix}weight", f"{prefix}bias"}:
                    words = f"{tensors[name].words}, repaired"
                    tensors[name] = replace(tensors[name], words=words, map_CC=map_CC.cpu())
    return replace(plan, tensors=tensors, repair="linear")


def fit_map(outputs_BTC: Tensor, states_BTC: Tensor, wanted_BTC: Tensor) -> Tensor:
    """Returns the map (C, C) of an MLP's outputs after which the states are nearer to those that are wanted.

    The states are the outputs and what is added to them. The map minimises the squared distance, divided by the squared
    norm of what is wanted: unweighted, the first token of a sequence, whose states are a hundred times as large, would
    be all that counts; left out, it would be wrong, and every other token attends to it.
    """
    outputs_MC, wanted_MC = outputs_BTC.flatten(0, 1).double(), wanted_BTC.flatten(0, 1).double()
    rest_MC = states_BTC.flatten(0, 1).double() - outputs_MC
    weights_M1 = 1 / wanted_MC.norm(dim=1, keepdim=True).clamp(min=1e-6)
    weighted_MC, identity_CC = outputs_MC * weights_M1, torch.eye(outputs_MC.shape[1]).to(outputs_MC)
    gram_CC = weighted_MC.mT @ weighted_MC
    ridge_CC = _RIDGE * gram_CC.diagonal().mean() * identity_CC
    fitted_CC = torch.linalg.solve(gram_CC + ridge_CC, weighted_MC.mT @ ((wanted_MC - rest_MC) * weights_M1) + ridge_CC)
    return (_SHARE * fitted_CC + (1 - _SHARE) * identity_CC).float()


def with_map(states_BTC: Tensor, outputs_BTC: Tensor, map_CC: Tensor) -> Tensor:
    """Returns states (B, T, C) in which an MLP's outputs have gone through a map."""
    with torch.autocast(states_BTC.device.type, enabled=False):
        return states_BTC - outputs_BTC + outputs_BTC @ map_CC


def repair_states(fitted: int, states_BTC: Tensor, outputs_BTC: Tensor, wanted_BTC: Tensor) -> Tensor:
    """Returns the states (B, T, C) after a repair that was fitted on the first sequences, as many as ``fitted``."""
    map_CC = fit_map(outputs_BTC[:fitted], states_BTC[:fitted], wanted_BTC[:fitted])
    return with_map(states_BTC, outputs_BTC, map_CC)
