"""One pass through a model, layer by layer, that measures whatever a pass can tell."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from inheritune_lit.analysis.attention_stats import HeadMeasures, block_influence, output_variance
from inheritune_lit.analysis.maps import AttentionMaps
from inheritune_lit.analysis.stream import LayerStream, StateStore
from inheritune_lit.model.attention import capture_attention


@dataclass
class ForwardMeasures:
    """What a pass has measured; B sequences, L layers, H heads, fp64.

    Attributes:
        heads: by measure, (B, L, H).
        layers: by measure, (B, L); logit_lens_loss (B, L + 1).
        last_LBC: the last token's state before each layer and after the last, fp32, L + 1 of them.
        output_BTC: what comes out of the last layer.
    """

    heads: dict[str, torch.Tensor]
    layers: dict[str, torch.Tensor]
    last_LBC: torch.Tensor
    output_BTC: torch.Tensor


def measure_forward(
    stream: LayerStream,
    tokens_BT1: torch.Tensor,
    tau: float,
    maps: AttentionMaps,
    inputs: StateStore | None,
    report: Callable[[], None],
) -> ForwardMeasures:
    """Run a model once on sequences.

    Args:
        stream: the model.
        tokens_BT1: sequences with the token that follows each.
        tau: threshold of rank and mass.
        maps: takes its maps.
        inputs: keeps what goes into layer l under the name "l", where given.
        report: called after each layer.

    Raises:
        UserError: the attention holds NaN.
    """
    targets_BT = tokens_BT1[:, 1:]
    x_BTC = stream.embed(tokens_BT1[:, :-1])
    last, losses = [x_BTC[:, -1].clone()], [stream.losses(x_BTC, targets_BT).cpu()]
    heads: list[dict[str, torch.Tensor]] = []
    layers: dict[str, list[torch.Tensor]] = {"block_influence": [], "output_variance": []}
    for layer in range(stream.config.n_layer):
        if inputs is not None:
            inputs.put(str(layer), x_BTC)
        influences, variances = [], []
        with stream.layer(layer) as (block, run):
            measures = HeadMeasures(layer, block.attn, tau)
            for rows in stream.chunks(len(x_BTC)):

                def receive(logits_BHTT, attention_BHTT, heads_BHTD, rows=rows, measures=measures, layer=layer):
                    measures.add(attention_BHTT, heads_BHTD)
                    if rows.start == 0 and maps.wanted(layer):
                        maps.add(layer, logits_BHTT, attention_BHTT)

                with capture_attention(block.attn, receive):
                    y_bTC = run(x_BTC[rows])
                influences.append(block_influence(x_BTC[rows], y_bTC).cpu())
                variances.append(output_variance(y_bTC).cpu())
                x_BTC[rows] = y_bTC
        heads.append(measures.result())
        layers["block_influence"].append(torch.cat(influences))
        layers["output_variance"].append(torch.cat(variances))
        last.append(x_BTC[:, -1].clone())
        losses.append(stream.losses(x_BTC, targets_BT).cpu())
        report()
    return ForwardMeasures(
        {name: torch.stack([measured[name] for measured in heads], dim=1) for name in heads[0]},
        {name: torch.stack(values, dim=1) for name, values in (layers | {"logit_lens_loss": losses}).items()},
        torch.stack(last),
        x_BTC,
    )
