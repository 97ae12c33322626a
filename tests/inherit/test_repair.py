"""Repaired slices against least squares over transformers' own hidden states, and what cannot be repaired."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from families import save
from torch.nn import functional as F

from inheritune_lit.analysis.args import SearchArgs
from inheritune_lit.analysis.search import search_layers
from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.checkpoint.export import export
from inheritune_lit.cli import main
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.reference import resolve
from inheritune_lit.inherit.repair import fit_map, repair_states
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.inherit.stream import LayerStream, score_subsets
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.model.load import load_model

B, T, DEPTH = 4, 24, 6
LAYERS = [1, 2, 4]  # one is missing before them, one between, one behind


@pytest.fixture
def tokens_BT1(monkeypatch) -> torch.Tensor:
    tokens = torch.randint(0, 97, (B, T + 1), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("inheritune_lit.analysis.search.draw_sequences", lambda *args: tokens)
    return tokens


def searched(folder: Path, out_dir: Path, layers: list[int] | None = LAYERS) -> Path:
    """A finished search; with layers, those of one that came to them."""
    search_layers(SearchArgs(str(folder), "text", out_dir, n_min=3, num_sequences=B, seq_length=T, repair="none"))
    if layers:
        content = json.loads((out_dir / "search.json").read_text())
        content["found"]["3"]["layers"] = layers
        (out_dir / "search.json").write_text(json.dumps(content))
    return out_dir


FAMILIES = {  # where transformers has the layers, and the last projection of a layer's MLP
    "llama": ("model", "layers", lambda layer: layer.mlp.down_proj),
    "gpt2": ("transformer", "h", lambda layer: layer.mlp.c_proj),
    "neox": ("gpt_neox", "layers", lambda layer: layer.mlp.dense_4h_to_h),
}


@torch.no_grad()
def repaired_by_hand(family: str, model, layers: list[int], tokens_BT: torch.Tensor):
    """A copy of the model in fp64 with some layers, repaired on the tokens, one run of the whole for each step."""
    inner, name, down = FAMILIES[family]
    model = copy.deepcopy(model).double()
    whole, width = list(getattr(getattr(model, inner), name)), model.config.hidden_size

    def run(some: list[torch.nn.Module]) -> list[torch.Tensor]:
        """What goes into each of these layers, and what the last gives."""
        seen = []

        def see_input(_layer, args, kwargs):
            seen.append(args[0] if args else kwargs["hidden_states"])

        hooks = [layer.register_forward_pre_hook(see_input, with_kwargs=True) for layer in some]
        last = some[-1].register_forward_hook(lambda _, args, out: seen.append(out[0] if type(out) is tuple else out))
        setattr(getattr(model, inner), name, torch.nn.ModuleList(some))
        model(input_ids=tokens_BT, use_cache=False)
        for hook in (*hooks, last):
            hook.remove()
        return [states_BTC.reshape(-1, width) for states_BTC in seen]

    reference, kept = run(whole), [whole[layer] for layer in layers]
    for place, layer in enumerate(layers):
        after = [*layers, len(whole)][place + 1]
        if after == layer + 1:
            continue
        wrote, linear = [], down(whole[layer])
        hook = linear.register_forward_hook(lambda _, args, out, to=wrote: to.append(out.reshape(-1, width)))
        states = run(kept)[place + 1]
        hook.remove()
        (outputs,), wanted = wrote, reference[after]
        scale = 1 / wanted.norm(dim=1, keepdim=True)
        rows, aims = outputs * scale, (wanted - (states - outputs)) * scale
        pull = (0.1 * (rows**2).sum() / width).sqrt() * torch.eye(width).double()  # the ridge as more rows
        fitted = torch.linalg.lstsq(torch.cat([rows, pull]), torch.cat([aims, pull])).solution
        half = (fitted + torch.eye(width)) / 2
        linear.weight.copy_(linear.weight @ half if family == "gpt2" else (linear.weight.T @ half).T)
        if linear.bias is not None:
            linear.bias.copy_(linear.bias @ half)
    run(kept)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_least_squares_over_the_states_of_transformers(family, request, tokens_BT1, tmp_path, monkeypatch):
    make, depth = request.getfixturevalue(f"make_{family}"), "n_layer" if family == "gpt2" else "num_hidden_layers"
    model, folder = make(**{depth: DEPTH})
    search = searched(folder, tmp_path / "search")
    loaded: list[int] = []
    layer = LayerStream.layer
    monkeypatch.setattr(LayerStream, "layer", lambda self, number: loaded.append(number) or layer(self, number))
    out = tmp_path / "student"
    slice_model(SliceArgs(str(folder), search=search, n=3, repair="linear", out_dir=out))
    assert loaded == list(range(DEPTH))
    by_hand = repaired_by_hand(family, model, LAYERS, tokens_BT1[:, :-1])
    inner, name, down = FAMILIES[family]
    expected = [down(layer) for layer in getattr(getattr(by_hand, inner), name)]
    slice_model(SliceArgs(str(folder), layers="1,2,4", out_dir=tmp_path / "plain"))
    student, plain = load_model(out), torch.load(tmp_path / "plain" / "lit_model.pth", weights_only=True)
    for key, tensor in student.state_dict().items():
        changed = re.fullmatch(r"transformer\.h\.([12])\.mlp\.proj\.(weight|bias)", key)
        if changed:
            wanted = getattr(expected[int(changed[1])], changed[2])
            wanted = wanted.T if family == "gpt2" and wanted.ndim == 2 else wanted
            torch.testing.assert_close(tensor.double(), wanted, rtol=1e-3, atol=1e-4)
        assert torch.equal(tensor, plain[key]) != bool(changed), key
    manifest = read_manifest(out)
    assert manifest["repair"] == "linear" and manifest["search"]["folder"] == str(search)
    changed = {name for name, words in manifest["tensors"].items() if words.endswith("repaired")}
    assert {name.rsplit(".", 1)[0] for name in changed} == {f"transformer.h.{place}.mlp.proj" for place in (1, 2)}
    # Any tool loads it: stock transformers has the logits of the model that was repaired by hand.
    export(ExportArgs(out, tmp_path / "hf"))
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager").double()
    with torch.no_grad():
        logits, wanted = (each(input_ids=tokens_BT1, use_cache=False).logits for each in (exported, by_hand))
    torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_a_search_scores_repaired_sets_as_they_are_on_the_other_sequences(family, request, tokens_BT1, tmp_path):
    model, folder = request.getfixturevalue(f"make_{family}")(num_hidden_layers=DEPTH)
    sizes = {"num_sequences": B, "seq_length": T, "precision": "32-true"}
    found = search_layers(SearchArgs(str(folder), "text", tmp_path / "out", n_min=2, **sizes)).search
    fitted, scored = tokens_BT1[: B // 2, :-1], tokens_BT1[B // 2 :]

    def loss(layers: list[int]) -> torch.Tensor:
        with torch.no_grad():
            repaired = repaired_by_hand(family, model, layers, fitted)
            logits = repaired(input_ids=scored[:, :-1], use_cache=False).logits.float()
        return F.cross_entropy(logits.transpose(1, 2), scored[:, 1:], reduction="none").mean(dim=1)

    kept = list(range(DEPTH))
    assert found.whole.score == pytest.approx(loss(kept).mean().item(), rel=1e-5)
    while len(kept) > 2:
        kept = min(([each for each in kept if each != gone] for gone in kept), key=lambda each: loss(each).mean())
        step = found.found[str(len(kept))]
        assert step.layers == kept and step.score == pytest.approx(loss(kept).mean().item(), rel=1e-4)
        assert step.stderr == pytest.approx(loss(kept).std().item() / 2**0.5, rel=1e-3)
        for by_n in found.compared.values():
            other = by_n[str(len(kept))]
            assert other.score == pytest.approx(loss(other.layers).mean().item(), rel=1e-4)
    assert found.settings["repair"] == "linear"


def test_groups_of_sets_do_not_change_repaired_scores(make_llama, tokens_BT1):
    _, folder = make_llama(num_hidden_layers=DEPTH)
    subsets = [(0, 2, 4), (0, 2, 3, 5), (1, 5), (0, 1, 2, 3, 4, 5), (3,)]
    with resolve(str(folder)) as resolved, torch.no_grad():
        stream = LayerStream(resolved.open().reference, T, torch.device("cpu"))
        x_BTC = stream.embed(tokens_BT1[:, :-1])
        together_SB, groups_SB = (
            score_subsets(stream, x_BTC, tokens_BT1[:, 1:], subsets, budget=budget, repair=repair_states, fitted=1)
            for budget in (1 << 30, 6 * x_BTC.nbytes)
        )
    assert together_SB.shape == (len(subsets), B - 1)
    torch.testing.assert_close(groups_SB, together_SB, rtol=1e-6, atol=1e-6)


def test_a_map_that_is_not_needed_is_the_identity_and_one_that_is_makes_up_for_half():
    random = torch.Generator().manual_seed(0)
    outputs, rest = (torch.randn(8, 64, 16, generator=random) for _ in range(2))
    torch.testing.assert_close(fit_map(outputs, rest + outputs, rest + outputs), torch.eye(16), rtol=0, atol=1e-5)
    wanted = torch.eye(16) + 0.3 * torch.randn(16, 16, generator=random)
    found = fit_map(outputs, rest + outputs, rest + outputs @ wanted)
    # With white outputs the ridge of a tenth leaves 1 / 1.1 of the way, of which half is taken.
    torch.testing.assert_close(found - torch.eye(16), (wanted - torch.eye(16)) / 2.2, rtol=0, atol=0.02)


def test_repair_lowers_the_distance_to_what_the_reference_gives(make_llama, tokens_BT1, tmp_path):
    model, folder = make_llama(num_hidden_layers=DEPTH, initializer_range=0.1)
    search = searched(folder, tmp_path / "search", None)
    distances = {}
    with torch.no_grad():
        wanted = model.model(input_ids=tokens_BT1[:, :-1]).last_hidden_state
        for repair in (None, "linear"):
            out = tmp_path / str(repair)
            slice_model(SliceArgs(str(folder), search=search, n=3, repair=repair, out_dir=out))
            student = load_model(out)
            distances[repair] = (student.hidden_states(tokens_BT1[:, :-1]) - wanted).square().mean().item()
    assert distances["linear"] < 0.9 * distances[None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "first:2"}, "--repair linear needs the sequences of a --search"),
        ({"n": 3, "init": "random", "search": True}, "--repair linear is for layers inherited whole"),
        ({"n": 3, "parts": "attn,norm", "search": True}, "--repair linear is for layers inherited whole"),
    ],
)
def test_bad_input_is_one_line(options, message, make_llama, tokens_BT1, tmp_path, capsys):
    _, folder = make_llama(num_hidden_layers=DEPTH)
    words = [word for name, value in options.items() if name != "search" for word in (f"--{name}", str(value))]
    words += ["--search", str(searched(folder, tmp_path / "search"))] if "search" in options else []
    assert main(["slice", str(folder), "--repair", "linear", "--out_dir", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("case", "why"), [("mixtral", "has experts"), ("gemma2", "puts a norm behind them")])
def test_mlps_that_do_not_end_in_weights_of_their_own_are_refused(case, why, tokens_BT1, tmp_path, capsys):
    save(case, tmp_path / "ref")
    search = searched(tmp_path / "ref", tmp_path / "search", None)
    words = ["--search", str(search), "--n", "3", "--repair", "linear", "--out_dir", str(tmp_path / "out")]
    assert main(["slice", str(tmp_path / "ref"), *words]) == 2
    assert why in capsys.readouterr().err and not (tmp_path / "out").exists()
    words = ["--data", "text", "--out_dir", str(tmp_path / "other"), "--seq_length", str(T), "--num_sequences", str(B)]
    assert main(["search", str(tmp_path / "ref"), "--repair", "linear", *words]) == 2
    assert why in capsys.readouterr().err and not (tmp_path / "other").exists()
    # Not asked for, it is left out.
    assert main(["search", str(tmp_path / "ref"), "--dry_run", *words]) == 0
    assert "by loss in" in capsys.readouterr().out
