"""Distillation against formulas in double precision, plain training, and itself after a kill."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from litgpt.model import GPT
from tiny import SHAPE, make_checkpoint
from torch.nn import functional as F
from train_command import kill_at_step, losses_of, pretrain_command

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.export import references_of, step_of
from inheritune_lit.cli import main
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.grown import write_grown
from inheritune_lit.inherit.reference import resolve
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.model.gpt import build_model
from inheritune_lit.model.load import load_model, load_state
from inheritune_lit.train import distillation, teach
from inheritune_lit.train import loss as distill_loss
from inheritune_lit.train.args import DistillArgs
from inheritune_lit.train.distillation import TeacherLogits
from inheritune_lit.train.loss import DistillationModel, divergence, drawn_cross_entropy, top_divergence


def build(seed: int, tied: bool = False, **changes) -> GPT:
    torch.manual_seed(seed)
    model = build_model(Config(**{**SHAPE, **changes}))
    if tied:
        model.lm_head.weight = model.transformer.wte.weight
    return model


def states_and_logits(model: GPT, inputs: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """What goes into each layer and into the final norm, what the head gets, and what it gives, all in fp64."""
    seen = []
    modules = (*model.transformer.h, model.transformer.ln_f, model.lm_head)
    handles = [each.register_forward_pre_hook(lambda module, args: seen.append(args[0].double())) for each in modules]
    logits = model(inputs)
    for handle in handles:
        handle.remove()
    return seen[:-1], seen[-1], logits.double()


@pytest.mark.parametrize("align", ["none", "last", "layers"])
@pytest.mark.parametrize(
    ("alpha", "temperature", "changes"),
    [(0.6, 1.0, {}), (0.0, 2.5, {"tied": True}), (0.3, 0.5, {"lm_head_bias": True, "final_logit_softcapping": 2.0})],
    ids=["paper", "tied", "bias-and-cap"],
)
def test_loss_and_gradients_equal_the_formula(monkeypatch, align, alpha, temperature, changes):
    monkeypatch.setattr("inheritune_lit.train.loss.CHUNK_TOKENS", 7)
    student, teacher = build(0, **changes), build(1, n_layer=3, padded_vocab_size=448)
    teacher.requires_grad_(False)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    tokens = torch.randint(0, 400, (3, 13))
    targets = tokens[:, 1:].clone()
    targets[1, 5:] = targets[2, -1:] = -100
    distill = DistillArgs("teacher", alpha=alpha, temperature=temperature, align=align, align_weight=0.4)
    module = DistillationModel(student, distill, teacher, 390, layers=(0, 2))
    loss = module(tokens[:, :-1], targets)
    found = torch.autograd.grad(2 * loss, list(student.parameters()))

    counted = targets != -100
    student_states, student_hidden, student_logits = states_and_logits(student, tokens[:, :-1])
    with torch.no_grad():
        teacher_states, teacher_hidden, teacher_logits = states_and_logits(teacher, tokens[:, :-1])
    student_logits, teacher_logits = student_logits[counted], teacher_logits[counted]
    theirs = F.pad(F.softmax(teacher_logits[:, :390] / temperature, -1), (0, 10))  # the student has 10 of padding
    soft = F.kl_div(F.log_softmax(student_logits / temperature, -1), theirs, reduction="sum")
    expected = alpha * F.cross_entropy(student_logits, targets[counted], reduction="sum")
    expected = expected + (1 - alpha) * temperature**2 * soft
    if align == "layers":  # the second layer is the teacher's third
        for ours, theirs in ((student_states[1], teacher_states[2]), (student_states[2], teacher_states[3])):
            ours, theirs = ours[counted], theirs[counted]
            apart = ((ours - theirs) ** 2).sum(-1) / ((ours**2).sum(-1) + (theirs**2).sum(-1))
            expected = expected + 0.4 * apart.sum()
    if align == "last":
        same = torch.ones(int(counted.sum()))
        expected = expected + 0.4 * F.cosine_embedding_loss(
            student_hidden[counted], teacher_hidden[counted], same, reduction="sum"
        )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for grad, value in zip(found, torch.autograd.grad(2 * expected, list(student.parameters())), strict=True):
        torch.testing.assert_close(grad, value, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert sum(parameter.numel() for parameter in module.parameters()) == sum(p.numel() for p in student.parameters())


def test_top_tokens_and_the_rest_as_one_outcome():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 40) * 6, torch.randn(5, 40) * 6
    top = F.log_softmax(teacher / 2, -1).topk(4)
    log_q, p = F.log_softmax(student.double() / 2, -1), F.softmax(teacher.double() / 2, -1)
    grouped_p = torch.cat((p.gather(1, top.indices), 1 - p.gather(1, top.indices).sum(1, keepdim=True)), 1)
    chosen = log_q.exp().gather(1, top.indices)
    grouped_q = torch.cat((chosen, 1 - chosen.sum(1, keepdim=True)), 1)
    expected = 4 * F.kl_div(grouped_q.log(), grouped_p, reduction="none").sum(1)
    found = top_divergence(student, top.indices, top.values, 2.0)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)
    whole = divergence(student, teacher, 2.0)
    assert (found < whole).all()
    everything = F.log_softmax(teacher / 2, -1).topk(40)
    torch.testing.assert_close(top_divergence(student, everything.indices, everything.values, 2.0), whole)


def test_draws_have_the_teachers_distribution_and_its_gradient():
    torch.manual_seed(0)
    student, teacher = (3 * torch.randn(1, 12)).requires_grad_(), 3 * torch.randn(1, 12)
    uniform = torch.from_numpy(teach.uniform_numbers(7, 3, 200_000)).view(1, -1)
    ids = teach.draw(teacher / 2, uniform)
    expected = F.softmax(teacher.double() / 2, -1)
    counts = ids[0].bincount(minlength=12)
    assert ((counts - 200_000 * expected[0]) ** 2 / (200_000 * expected[0])).sum() < 31.3  # chi-squared, 1 in 1,000
    entropy = -(expected * expected.log()).sum()
    drawn, whole = drawn_cross_entropy(student, ids, 2.0), divergence(student, teacher, 2.0)
    assert drawn.item() == pytest.approx((whole + 4 * entropy).item(), rel=0.01)
    gradients = [torch.autograd.grad(loss.sum(), student)[0] for loss in (drawn, whole)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0.02)
    others = [teach.uniform_numbers(*key, 200_000) for key in ((7, 4), (8, 3))]
    assert all(each.min() >= 0 and each.max() < 1 and abs(each.mean() - 0.5) < 0.005 for each in others)
    assert not any(np.isin(each[:1000], uniform).any() for each in others)


def test_unlikely_tokens_are_drawn_as_often_as_they_are():
    logits = torch.zeros(1, 50_000)
    logits[0, 0] = 25.0  # all others together have 6.9e-7: in fp32 their sum would stay where it is
    total = logits.double().softmax(-1)[0, 1:].sum()
    ids = teach.draw(logits, 1 - total * torch.tensor([[1.01, 0.75, 0.5, 0.25]], dtype=torch.float64))
    assert ids[0, 0] == 0 and ids[0, 1:].tolist() == pytest.approx([12_500, 25_000, 37_500], abs=60)


def test_the_layers_behind_a_slice_of_a_slice_and_a_grown_one(tmp_path, tokenizer_dir):
    make_checkpoint(tmp_path / "whole", tokenizer_dir, n_layer=6)

    def cut(ref: str, name: str, **options) -> Path:
        return slice_model(SliceArgs(str(tmp_path / ref), out_dir=tmp_path / name, **options)).folder

    def found(folder: Path) -> list[tuple[int | None, list[int] | None]]:
        return [(reference.n_layer, layers) for reference, layers in references_of(step_of(folder))]

    assert found(cut("whole", "first", layers="0,2,3,5")) == [(6, [0, 2, 3, 5])]
    assert found(cut("first", "second", layers="1,3")) == [(4, [1, 3]), (6, [2, 5])]
    assert found(cut("first", "random", n=2, init="random")) == [(4, None), (6, None)]
    with resolve(str(tmp_path / "first")) as located:
        reference = located.open().reference
        write_grown(tmp_path / "grown", reference, tmp_path / "second", (1, 3, 0), 1, "position")
    assert found(tmp_path / "grown") == [(4, [1, 3, 0]), (6, [2, 5, 0])]
    with pytest.raises(UserError, match="was sliced from 4 and 6 layers, the teacher has 5 layers"):
        distillation._teacher_layers(tmp_path / "grown", 3, 5)


def test_sure_teacher_and_sure_student_give_finite_gradients():
    student = torch.tensor([[200.0, 0.0, -50.0, 3.0]], requires_grad=True)
    loss = top_divergence(student, torch.tensor([[0]]), torch.tensor([[0.0]]), 1.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.isfinite().all()


@pytest.fixture
def teacher(tmp_path, tokenizer_dir):
    make_checkpoint(tmp_path / "teacher", tokenizer_dir, n_layer=3, seed=7)
    return tmp_path / "teacher"


@pytest.fixture
def teach_command(teacher, packed, tmp_path):
    def make(out_dir=tmp_path / "logits", **changes):
        flags = {"teacher": teacher, "data": packed, "out_dir": out_dir, "max_seq_length": 16, "top_k": 20, **changes}
        return [
            "teach",
            *(str(part) for name, value in flags.items() if value is not None for part in (f"--{name}", value)),
        ]

    return make


def run(args: list[str]) -> None:
    assert main(args) == 0


def same_weights(one, other) -> bool:
    one, other = load_state(one / "final"), load_state(other / "final")
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_alpha_1_is_plain_training_and_less_is_not(checkpoint, teacher, packed, tmp_path):
    run(pretrain_command(checkpoint, packed, tmp_path / "plain"))
    for alpha in (1.0, 0.9):
        flags = {"distill__teacher": teacher, "distill__alpha": alpha}
        run(pretrain_command(checkpoint, packed, tmp_path / f"{alpha}", **flags))
    assert losses_of(tmp_path / "plain") == losses_of(tmp_path / "1.0")
    assert same_weights(tmp_path / "plain", tmp_path / "1.0")
    assert not same_weights(tmp_path / "plain", tmp_path / "0.9")


def test_stored_predictions_of_all_tokens_equal_the_teacher(checkpoint, teacher, packed, tmp_path, teach_command):
    run(teach_command(top_k=400, temperature=2.0, dtype="float32"))
    flags = {"distill__temperature": 2.0, "distill__alpha": 0.2, "train__max_steps": 10}
    run(pretrain_command(checkpoint, packed, tmp_path / "online", distill__teacher=teacher, **flags))
    stored = {"distill__teacher_logits": tmp_path / "logits", **flags}
    run(pretrain_command(checkpoint, packed, tmp_path / "offline", **stored))
    online, offline = (load_state(tmp_path / name / "final") for name in ("online", "offline"))
    for name, value in online.items():
        torch.testing.assert_close(offline[name], value, rtol=1e-3, atol=2e-4)


def test_rows_of_a_head_that_no_token_has_teach_nothing(checkpoint, teacher, packed, tmp_path, tokenizer_dir):
    padded = make_checkpoint(tmp_path / "padded", tokenizer_dir, n_layer=3, padded_vocab_size=448).state_dict()
    for name, value in load_model(teacher).state_dict().items():
        padded[name][: len(value)] = value
    torch.save(padded, tmp_path / "padded" / "lit_model.pth")
    flags = {"distill__alpha": 0.2, "train__max_steps": 6}
    for name, student in (("teacher", checkpoint), ("padded", checkpoint), ("both", tmp_path / "padded")):
        taught_by = tmp_path / ("padded" if name == "padded" else "teacher")
        run(pretrain_command(student, packed, tmp_path / f"by-{name}", distill__teacher=taught_by, **flags))
    assert losses_of(tmp_path / "by-padded") == losses_of(tmp_path / "by-teacher")


def test_separate_documents_with_padding(checkpoint, teacher, packed, tmp_path, teach_command):
    run(teach_command(top_k=400, dtype="float32", documents="separate"))
    flags = {"documents": "separate", "train__max_steps": 6}
    run(pretrain_command(checkpoint, packed, tmp_path / "online", distill__teacher=teacher, **flags))
    run(
        pretrain_command(checkpoint, packed, tmp_path / "offline", distill__teacher_logits=tmp_path / "logits", **flags)
    )
    losses = [[float(row[2]) for row in losses_of(tmp_path / name)[1:]] for name in ("online", "offline")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("kind", ["layers", "stored"])
def test_killed_and_continued_equals_undisturbed(checkpoint, teacher, packed, tmp_path, teach_command, kind):
    if kind == "stored":
        run(teach_command(**KEPT["drawn"]))
        flags = {"distill__teacher_logits": tmp_path / "logits"}
    else:
        checkpoint = tmp_path / "slice"
        slice_model(SliceArgs(str(teacher), layers="0,2", out_dir=checkpoint))
        flags = {"distill__teacher": teacher, "distill__align": kind}
    before = sha256_file(teacher / "lit_model.pth")
    run(pretrain_command(checkpoint, packed, tmp_path / "whole", **flags))
    killed = pretrain_command(checkpoint, packed, tmp_path / "killed", **flags)
    kill_at_step(17, killed)
    run(killed)
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "whole")
    assert same_weights(tmp_path / "killed", tmp_path / "whole")
    assert sha256_file(teacher / "lit_model.pth") == before


KEPT = {"likeliest": {"top_k": 20}, "drawn": {"top_k": None, "samples": 25}}


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


@pytest.mark.parametrize("kept", KEPT)
def test_teach_continues_where_it_was_killed(tmp_path, teach_command, monkeypatch, kept):
    run(teach_command(tmp_path / "whole", **KEPT[kept]))
    monkeypatch.setattr(teach, "_SAVE_BLOCKS", 8)
    with monkeypatch.context() as patch:
        seen = []

        def head_logits(gpt, hidden):
            seen.append(len(hidden))
            if len(seen) == 6:
                raise KeyboardInterrupt
            return distill_loss.head_logits(gpt, hidden)

        patch.setattr(teach, "head_logits", head_logits)
        assert main(teach_command(**KEPT[kept])) == 130
        assert not (tmp_path / "logits").exists()
        assert main(teach_command(top_k=3)) == 2
        seen[:] = [0] * 10
        run(teach_command(**KEPT[kept]))
        blocks = sum(seen[10:]) // 16
    assert written(tmp_path / "logits") == written(tmp_path / "whole")
    assert blocks == TeacherLogits(tmp_path / "logits", {}).settings["blocks"] - 16


@pytest.mark.parametrize("kept", KEPT)
def test_batches_change_no_byte(tmp_path, teach_command, monkeypatch, kept):
    run(teach_command(tmp_path / "whole", **KEPT[kept]))
    monkeypatch.setattr(teach, "batches_per_wait", lambda device: 3)
    run(teach_command(**KEPT[kept]))
    assert written(tmp_path / "logits") == written(tmp_path / "whole")
    if kept == "drawn":
        run(teach_command(tmp_path / "small", **KEPT[kept], batch_size=3))
        run(teach_command(tmp_path / "seed", **KEPT[kept], seed=1))
        assert written(tmp_path / "small") == written(tmp_path / "whole") != written(tmp_path / "seed")
        assert written(tmp_path / "small").keys() == {"ids.bin"}


def test_plan_counts_the_teacher(checkpoint, teacher, packed, tmp_path, capsys, teach_command):
    run([*pretrain_command(checkpoint, packed, tmp_path / "run", distill__alpha=1), "--dry_run"])
    plain = capsys.readouterr().err
    command = pretrain_command(checkpoint, packed, tmp_path / "run", distill__teacher=teacher)
    run([*command, "--dry_run"])
    text = capsys.readouterr().err
    parameters = sum(parameter.numel() for parameter in load_model(teacher).parameters())
    assert f"learns from tiny, {parameters:,} parameters" in text
    flops = [float(re.search(r"(\S+) FLOPs", told)[1]) for told in (plain, text)]
    # 2 a matrix parameter and token, and attention's 2 * layers * width * T; 30 steps of 64 tokens.
    matrices = 3 * (32 * 64 + 32 * 32 + 3 * 32 * 48) + 400 * 32
    assert flops[1] - flops[0] == pytest.approx(30 * 64 * 2 * (matrices + 3 * 32 * 16), rel=0.02)
    run([*teach_command(), "--dry_run"])
    assert "GB on disk" in capsys.readouterr().err
    assert not (tmp_path / "logits").exists()


def test_refusals_before_training(checkpoint, teacher, packed, tmp_path, tokenizer_dir, capsys, teach_command):
    make_checkpoint(tmp_path / "wide", tokenizer_dir, n_embd=64)
    make_checkpoint(tmp_path / "vocabulary", tokenizer_dir, padded_vocab_size=384)
    make_checkpoint(tmp_path / "short", tokenizer_dir, block_size=8)
    run(teach_command())
    cases = [
        ({"distill__teacher": tmp_path / "vocabulary"}, "vocabulary has 384 logits, its tokenizer 400 tokens"),
        ({"distill__teacher": tmp_path / "short"}, "--train.max_seq_length 8 or another teacher"),
        ({"distill__teacher": tmp_path / "wide", "distill__align": "last"}, "use --distill.align none"),
        ({"distill__teacher": teacher, "distill__alpha": 1.5}, "--distill.alpha is 1.5"),
        ({"distill__teacher": teacher, "distill__temperature": 0}, "--distill.temperature is 0"),
        ({"distill__teacher": teacher, "train__z_loss": 0.1}, "--train.z_loss 0.1"),
        ({"distill__teacher": teacher, "speed__loss_kernel": "plain"}, "has a loss of its own"),
        ({"distill__teacher": teacher, "distill__teacher_logits": tmp_path / "logits"}, "give one"),
        ({"distill__teacher_logits": tmp_path / "logits", "distill__align": "last"}, "give --distill.teacher"),
        (
            {"distill__teacher": teacher, "distill__align": "layers"},
            "is not a slice, or of random weights",
        ),
        ({"distill__teacher_logits": tmp_path / "logits", "distill__temperature": 2}, "made with temperature 1.0"),
        ({"distill__teacher_logits": tmp_path / "logits", "train__max_seq_length": 32}, "block_size 16, not 32"),
        ({"distill__teacher_logits": teacher}, "does not hold a teacher's predictions"),
    ]
    for flags, message in cases:
        assert main(pretrain_command(checkpoint, packed, tmp_path / "run", **flags)) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    with (tmp_path / "short" / "tokenizer.model").open("ab") as tokenizer:
        tokenizer.write(b"\xfa\x3f\x00")  # an empty field that nobody knows: the same pieces in another file
    assert main(pretrain_command(checkpoint, packed, tmp_path / "run", distill__teacher=tmp_path / "short")) == 2
    assert "another vocabulary than the data" in capsys.readouterr().err
    run(pretrain_command(checkpoint, packed, tmp_path / "run", distill__teacher=teacher, train__max_steps=6))
    assert main(pretrain_command(checkpoint, packed, tmp_path / "run", train__max_steps=6)) == 2
    assert "was started with distill" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("align", ["last", "layers"])
def test_compiled_computes_the_same(align):
    student, teacher = build(0), build(1).requires_grad_(False)
    tokens = torch.randint(0, 400, (2, 17))
    results = []
    for compiled in (False, True):
        module = DistillationModel(student, DistillArgs("x", align=align), teacher, 400, (0, 1), compiled)
        loss = module(tokens[:, :-1], tokens[:, 1:])
        results.append((loss.detach(), torch.autograd.grad(loss, list(student.parameters()))))
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)
