"""Repaired slices against least squares over transformers' own hidden states, and what cannot be repaired."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from families import save

from inheritune_lit.analysis.args import SearchArgs
from inheritune_lit.analysis.search import search_layers
from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.checkpoint.export import export
from inheritune_lit.cli import main
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.repair import fit_map
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.inherit.stream import LayerStream
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
    search_layers(SearchArgs(str(folder), "text", out_dir, n_min=3, num_sequences=B, seq_length=T))
    if layers:
        content = json.loads((out_dir / "search.json").read_text())
        content["found"]["3"]["layers"] = layers
        (out_dir / "search.json").write_text(json.dumps(content))
    return out_dir


def brute_force(model, blocks, down, tokens_BT) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Weight (out, in) and bias of the last projection of each kept MLP, one model after the other, in fp64."""
    model = model.double()
    whole, widths = list(blocks(model)), model.config.hidden_size

    def run(layers: list[torch.nn.Module]) -> list[torch.Tensor]:
        """What goes into each of these layers, and what the last gives."""
        seen = []
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
            for layer in layers
        ]
        hooks.append(
            layers[-1].register_forward_hook(
                lambda _, args, out: seen.append(out if isinstance(out, torch.Tensor) else out[0])
            )
        )
        container = model.model if hasattr(model, "model") else getattr(model, "gpt_neox", None) or model.transformer
        name = "h" if hasattr(container, "h") else "layers"
        setattr(container, name, torch.nn.ModuleList(layers))
        model(input_ids=tokens_BT, use_cache=False)
        for hook in hooks:
            hook.remove()
        return seen

    with torch.no_grad():
        reference = run(whole)
        for place, layer in enumerate(LAYERS):
            after = [*LAYERS, DEPTH][place + 1]
            if after == layer + 1:
                continue
            wrote = []
            hook = down(whole[layer]).register_forward_hook(lambda _, args, out, to=wrote: to.append(out))
            states = run([whole[each] for each in LAYERS])[place + 1].reshape(-1, widths)
            hook.remove()
            (outputs,), wanted = wrote, reference[after].reshape(-1, widths)
            outputs = outputs.reshape(-1, widths)
            scale = 1 / wanted.norm(dim=1, keepdim=True)
            rows, aims = outputs * scale, (wanted - (states - outputs)) * scale
            pull = (0.1 * (rows**2).sum() / widths).sqrt() * torch.eye(widths).double()  # ridge as more rows
            fitted = torch.linalg.lstsq(torch.cat([rows, pull]), torch.cat([aims, pull])).solution
            half = (fitted + torch.eye(widths)) / 2
            linear = down(whole[layer])
            if isinstance(linear, torch.nn.Linear):
                linear.weight.copy_((linear.weight.T @ half).T)
            else:  # GPT-2's is (in, out)
                linear.weight.copy_(linear.weight @ half)
            if linear.bias is not None:
                linear.bias.copy_(linear.bias @ half)
    run([whole[each] for each in LAYERS])
    return [(down(whole[each]).weight, down(whole[each]).bias) for each in LAYERS]


FAMILIES = {
    "llama": (lambda model: model.model.layers, lambda layer: layer.mlp.down_proj),
    "gpt2": (lambda model: model.transformer.h, lambda layer: layer.mlp.c_proj),
    "neox": (lambda model: model.gpt_neox.layers, lambda layer: layer.mlp.dense_4h_to_h),
}


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
    blocks, down = FAMILIES[family]
    expected = brute_force(model, blocks, down, tokens_BT1[:, :-1])
    student, plain = load_model(out), torch.load(plain_of(folder, tmp_path) / "lit_model.pth", weights_only=True)
    for name, tensor in student.state_dict().items():
        _, _, place, *rest = name.split(".") if name.startswith("transformer.h.") else (0, 0, -1, 0)
        if ".".join(map(str, rest)).startswith("mlp.proj") and int(place) in (1, 2):
            weight, bias = expected[int(place)]
            wanted = bias if name.endswith("bias") else weight.T if family == "gpt2" else weight
            torch.testing.assert_close(tensor.double(), wanted, rtol=1e-3, atol=1e-4)
            assert not torch.equal(tensor, plain[name])
        else:
            assert torch.equal(tensor, plain[name]), name
    manifest = read_manifest(out)
    assert manifest["repair"] == "linear" and manifest["search"]["folder"] == str(search)
    changed = {name for name, words in manifest["tensors"].items() if words.endswith("repaired")}
    assert {name.rsplit(".", 1)[0] for name in changed} == {f"transformer.h.{place}.mlp.proj" for place in (1, 2)}
    # Any tool loads it: stock transformers has the logits of the model that was repaired by hand.
    export(ExportArgs(out, tmp_path / "hf"))
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager").double()
    with torch.no_grad():
        logits, by_hand = (each(input_ids=tokens_BT1, use_cache=False).logits for each in (exported, model))
    torch.testing.assert_close(logits, by_hand, rtol=1e-3, atol=1e-3)


def plain_of(folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "plain"
    slice_model(SliceArgs(str(folder), layers="1,2,4", out_dir=out))
    return out


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
