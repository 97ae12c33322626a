"""An analysis with made-up numbers of the right shapes."""

import numpy as np

from inheritune_lit.analysis.result import (
    Analysis,
    AnalyzedModel,
    AttentionMap,
    ByHead,
    ByLayer,
    LazyLayers,
    MapCollection,
    MeanLoss,
    Measure,
    Protocols,
    ProtocolV2,
    ProtocolV4,
)

HEAD_MEASURES = (
    "attention_rank",
    "attention_mass",
    "entropy",
    "entropy_without_sink",
    "sink_mass",
    "head_output_norm",
)
LAYER_MEASURES = ("block_influence", "output_variance", "drop_loss", "angular_distance")


def make_analysis(n_layer: int = 6, n_head: int = 4, name: str = "made-up", seed: int = 0, maps: int = 2) -> Analysis:
    """Numbers that look like a model whose last third of layers is lazy."""
    draw = np.random.default_rng(seed)
    lazy = list(range(n_layer - n_layer // 3, n_layer))
    rank_LH = np.maximum(1, 60 * draw.random((n_layer, n_head)) * np.linspace(1, 0.3, n_layer)[:, None])
    rank_LH[lazy] = 1
    heads = {measure: _by_head(draw.random((n_layer, n_head))) for measure in HEAD_MEASURES}
    heads |= {"attention_rank": _by_head(rank_LH), "attention_mass": _by_head(np.maximum(1, rank_LH * 0.8))}
    layers = {measure: _by_layer(draw.random(n_layer) + 0.1) for measure in LAYER_MEASURES}
    layers["logit_lens_loss"] = _by_layer(np.linspace(10, 3, n_layer + 1))
    attention_TT = np.tril(draw.random((40, 40)))
    attention_TT /= attention_TT.sum(axis=1, keepdims=True)
    return Analysis(
        model=AnalyzedModel(name, "nowhere", n_layer, n_head, n_embd=32, parameters=12345),
        settings={
            "tau": 0.9,
            "num_sequences": 100,
            "seq_length": 100,
            "seed": 1,
            "data": "nowhere",
            "protocol": "v4",
        },
        heads=heads,
        layers=layers,
        protocols=Protocols(
            v2=ProtocolV2(max_rank=_by_layer(rank_LH.max(axis=1)), max_mass=_by_layer(rank_LH.max(axis=1))),
            v4=ProtocolV4(
                max_rank=rank_LH.max(axis=1).tolist(),
                max_mass=rank_LH.max(axis=1).tolist(),
                avg_rank=rank_LH.mean(axis=1).tolist(),
                avg_mass=rank_LH.mean(axis=1).tolist(),
            ),
        ),
        lazy=LazyLayers(lazy, [[lazy[0], lazy[-1]]] if lazy else [], lazy[0] if lazy else None),
        maps=MapCollection(
            kind="causal",
            tokens=40,
            strings=3,
            attention=[
                AttentionMap(layer, head, attention_TT.tolist())
                for layer in range(0, n_layer, max(1, n_layer // 4))
                for head in range(min(maps, n_head))
            ],
        ),
        loss=MeanLoss(3.0, 0.1),
        measures={
            measure: Measure(f"formula of {measure} | x", "somewhere", "units")
            for measure in (*HEAD_MEASURES, *LAYER_MEASURES, "logit_lens_loss", "angular_distance")
        },
    )


def _by_layer(mean: np.ndarray) -> ByLayer:
    return ByLayer(mean.tolist(), (0.2 * np.abs(mean)).tolist())


def _by_head(mean: np.ndarray) -> ByHead:
    return ByHead(mean.tolist(), (0.2 * np.abs(mean)).tolist())
