"""Costs before anything is spent: against closed forms, brute force, real slices and real steps."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_checkpoint, make_packed

from inheritune_lit.cli import main
from inheritune_lit.data.manifest import load_packed_manifest
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.model.load import load_model
from inheritune_lit.parsing import read_recipe
from inheritune_lit.planning.args import PlanArgs, parse_count
from inheritune_lit.planning.estimate import ModelSpec, TrainingJob, fit_gpu, fit_time
from inheritune_lit.planning.plan import plan
from inheritune_lit.references import REFERENCES
from inheritune_lit.train.args import OptimizerArgs, PretrainArgs, SpeedArgs, TeachArgs, TrainArgs
from inheritune_lit.train.gpus import GPUS, find_gpus
from inheritune_lit.train.pretrain import pretrain
from inheritune_lit.train.teach import teach

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def job() -> TrainingJob:
    """The paper's main run."""
    model = ModelSpec.of_reference("openllama-3b", 13)
    return TrainingJob(model, 8 * 10**9, 2048, TrainArgs(), unique_tokens=10**9)


def test_known_models_need_no_network():
    offline = [reference for reference in REFERENCES if "-v2" not in reference.name and "gpt2" not in reference.name]
    assert len(offline) > 15
    for reference in offline:
        model = ModelSpec.of_reference(reference.name, None)
        assert (model.config.n_layer, model.config.n_embd) == (reference.layers, reference.width)
        assert model.parameters == reference.parameters


def test_the_papers_main_run(job):
    # The sizes and costs that the paper's shape gives by hand: 13 layers of 123,910,400, two matrices of 32,000 x 3200.
    assert job.model.parameters == 13 * 123_910_400 + 2 * 32_000 * 3200 + 3200
    assert job.model.non_embedding_parameters == 13 * 123_910_400 + 3200
    assert job.flops_per_token == pytest.approx(10.79e9, rel=1e-3)
    hours = {card.name: job.seconds(card) / 3600 for card in GPUS}
    assert (round(hours["a6000"]), round(hours["a100-80gb"])) == (310, 154)
    # Eight hours on an A6000: 19 to 20 times its peak.
    assert 19 < fit_time(job, find_gpus("a6000")[0], 8)[0] < 20
    data, state, checkpoints = job.disk()
    assert data == 2 * 10**9
    assert state == 2 * 12 * job.model.parameters and checkpoints == 4 * job.model.parameters


@pytest.mark.parametrize("card", [card.name for card in GPUS])
def test_largest_micro_batch_fits_and_one_more_does_not(job, card):
    each = fit_gpu(job, find_gpus(card)[0])
    room = each.gpu.memory * 0.94
    if each.job is None:
        speed = SpeedArgs(activation_checkpointing=True)
        smallest = replace(job, speed=speed, optimizer=OptimizerArgs(name="adamw8bit"))
        assert smallest.memory(1).total > room
        return
    assert each.job.memory(each.micro_batch_size).total <= room < each.job.memory(each.micro_batch_size + 1).total


def test_what_fits_into_a_time_is_found_by_trying(job):
    card = find_gpus("h100")[0]
    _, tokens, n_layer = fit_time(job, card, 20)
    seconds = [replace(job, model=ModelSpec.of_reference("openllama-3b", n)).seconds(card) for n in range(1, 14)]
    assert n_layer == sum(each <= 20 * 3600 for each in seconds)
    assert replace(job, tokens=tokens).seconds(card) == pytest.approx(20 * 3600)


def test_a_checkpoint_folder_is_counted_as_torch_does(tmp_path, tokenizer_dir):
    checkpoint = tmp_path / "three"
    make_checkpoint(checkpoint, tokenizer_dir, n_layer=3)
    model = ModelSpec.of_checkpoint(checkpoint)
    assert model.parameters == sum(parameter.numel() for parameter in load_model(checkpoint).parameters())
    make_checkpoint(tmp_path / "one", tokenizer_dir, n_layer=1)
    assert model.first_layers(1).parameters == ModelSpec.of_checkpoint(tmp_path / "one").parameters


@pytest.mark.parametrize(
    ("family", "settings"),
    [("make_llama", {}), ("make_llama", {"tie_word_embeddings": True}), ("make_gpt2", {})],
    ids=["llama", "llama-tied", "gpt2"],
)
def test_parameters_of_every_n_are_those_of_slices(family, settings, request, tmp_path):
    model, folder = request.getfixturevalue(family)(**settings)
    depth = model.config.num_hidden_layers
    for n in range(1, depth + 1):
        out_dir = slice_model(SliceArgs(str(folder), n=n, out_dir=tmp_path / f"n{n}")).folder
        planned = ModelSpec.of_reference(str(folder), n).parameters
        assert planned == read_manifest(out_dir)["parameters"]["total"]
        assert planned == sum(parameter.numel() for parameter in load_model(out_dir).parameters())
    assert ModelSpec.of_reference(str(folder), None).parameters == planned == model.num_parameters()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_planned(recipe, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = ["plan", "--recipe", str(recipe), "--tokens", "8B", "--gpu", "a6000", "--price_per_hour", "0.8"]
    swept = "sweep" in recipe.stem
    assert main(args + ["--n", "13"] * swept) == 0
    assert "a6000" in capsys.readouterr().out
    if swept:
        assert main(args) == 2
        assert "give one, such as --n 13" in capsys.readouterr().err


def test_measured_on_this_machine(tmp_path, tokenizer_dir, capsys):
    checkpoint = tmp_path / "start"
    make_checkpoint(checkpoint, tokenizer_dir)
    args = ["plan", "--ref", str(checkpoint), "--tokens", "1M", "--max_seq_length", "16", "--precision", "32-true"]
    assert main([*args, "--measure"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("measured here (") and " tokens/s" in line


def test_numbers_of_tokens():
    assert [parse_count(text) for text in ("8B", "1.5b", "300M", "1e9", "1_000", "2,048")] == [
        8 * 10**9,
        15 * 10**8,
        3 * 10**8,
        10**9,
        1000,
        2048,
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("", "nothing to plan; give --recipe, or --ref"),
        ("--ref openllama-3b --n 13", "no budget; give --tokens, such as 8B"),
        ("--ref openllama-3b --n 27 --tokens 8B", "--n 27 is more than the reference's 26 layers"),
        ("--ref openllama-3c --n 2 --tokens 8B", "did you mean openllama-3b"),
        ("--ref openllama-3b --n 13 --tokens lots", "--tokens lots is not a number of tokens"),
        ("--ref openllama-3b --n 13 --tokens 1e400", "--tokens 1e400 is not a number of tokens"),
        (
            "--ref openllama-3b --n 13 --tokens 8B --devices 7",
            "micro_batch_size 4 times 7 devices",
        ),
        ("--ref openllama-3b --n 13 --tokens 8B --optimizer adm", "--optimizer is 'adm'; give adamw"),
        ("--ref openllama-3b --n 13 --tokens 5", "makes no step of 131,072 tokens"),
        ("--ref openllama-3b --n 13 --tokens 8B --gpu a1000", "--gpu a1000 is not known; give one of"),
        ("--ref openllama-3b --n 13 --tokens 8B --mfu 1.5", "--mfu is 1.5; give a number above 0 and at most 1"),
        ("--ref openllama-3b --n 13 --tokens 8B --max_hours -1", "--max_hours is -1.0; give a number above 0"),
        ("--ref openllama-3b --n 13 --tokens 8B --max_seq_length 9999", "attends to at most 2048 tokens"),
        ("--recipe no.yaml", "--recipe no.yaml: there is no such file"),
        ("--recipe {root}/pyproject.toml", "pyproject.toml can't be read as a recipe of --recipe"),
        ("--recipe {root}/eval/quick.yaml", "is not a recipe of `inheritune pretrain`"),
        ("--recipe {root}/recipes/paper-openllama-3b-13l-1b.yaml", "which is not there; give --tokens"),
        ("--recipe {root}/recipes/paper-openllama-3b-13l-1b.yaml --n 5 --tokens 1B", "--n 5 needs --ref"),
    ],
)
def test_bad_input_is_one_line(arguments, complaint, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *arguments.format(root=ROOT).split()]) == 2
    error = capsys.readouterr().err
    assert complaint in error and len(error.splitlines()) == 1


def test_a_recipe_may_be_the_first_argument_and_the_plan_is_data(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    recipe = "recipes/paper-openllama-3b-13l-1b.yaml"
    found = plan(PlanArgs(recipe, tokens="8B", gpu="a6000"))
    assert found == plan(PlanArgs(recipe=recipe, tokens="8B", gpu="a6000"))
    # 310 hours of training; validation, one hour, comes on top.
    assert round(found.hours["a6000"] - found.job.validation_flops / 77.4e12 / 3600) == 310
    assert found.parameters == 1_815_638_400 and found.memory.checkpoint == 4 * found.parameters
    assert found.flops - found.job.validation_flops == pytest.approx(8e9 * 10.79e9, rel=1e-3)
    assert main(["plan", recipe, "--tokens", "8B", "--gpu", "a6000"]) == 0
    assert capsys.readouterr().out == f"{found}\n"


def validations(total_steps: int, interval: int, first: bool) -> int:
    """How often the loop validates, counted by walking through its steps."""
    return first + sum(step % interval == 0 or step == total_steps for step in range(1, total_steps + 1))


@pytest.mark.parametrize(("steps", "interval", "first"), [(7, 3, True), (6, 3, False), (2, 5, True), (1, 1, True)])
def test_validation_is_counted_as_the_loop_does_it(steps, interval, first, tmp_path, tokenizer_dir, capsys):
    make_checkpoint(tmp_path / "start", tokenizer_dir, n_layer=2)
    packed = make_packed(tmp_path / "data", tokenizer_dir)
    val = load_packed_manifest(packed)
    samples = sum(domain.val.tokens for domain in val.domains.values()) // 16
    recipe = tmp_path / "recipe.yaml"
    for iters, expected in ((2, 4), (None, samples), (10**6, samples)):
        recipe.write_text(
            f"initial_checkpoint_dir: {tmp_path}/start\ndata: {packed}\nout_dir: {tmp_path}/run\nprecision: 32-true\n"
            f"train: {{max_steps: {steps}, global_batch_size: 4, micro_batch_size: 2, max_seq_length: 16, "
            f"lr_warmup_steps: 0}}\neval: {{interval: {interval}, max_iters: {iters or 'null'}, "
            f"initial_validation: {str(first).lower()}}}\n"
        )
        found = plan(PlanArgs(recipe))
        forward = found.job.flops_per_token / 3
        assert found.job.validation_flops == pytest.approx(
            validations(steps, interval, first) * expected * 16 * forward, rel=0.05
        )
        assert main(["pretrain", "--config", str(recipe), "--dry_run"]) == 0
        told = re.search(r"(\S+) FLOPs, (\S+)% of them validation", capsys.readouterr().err)
        assert float(told[1]) == pytest.approx(found.flops, rel=0.05)
        assert float(told[2]) == pytest.approx(100 * found.job.validation_flops / found.flops, abs=2)
    assert "this CPU" in str(found)


def test_a_teacher_is_counted_and_named_by_flag_or_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone = plan(PlanArgs("openllama-3b", 13, "8B", gpu="h100"))
    taught = plan(PlanArgs("openllama-3b", 13, "8B", gpu="h100", teacher="openllama-3b"))
    theirs = 8e9 * taught.job.teacher.parameters * 2  # a forward pass takes two FLOPs per parameter, and attention
    assert 1 < (taught.flops - alone.flops) / theirs < 1.1
    assert taught.hours["h100"] / alone.hours["h100"] == pytest.approx(taught.flops / alone.flops)
    assert taught.memory.teacher > 2 * taught.job.teacher.parameters and "the teacher, openllama-3b" in str(taught)
    recipe = (ROOT / "recipes/paper-openllama-3b-13l-1b.yaml").read_text()
    (tmp_path / "taught.yaml").write_text(recipe + "distill: {teacher: openllama-3b}\n")
    (tmp_path / "stored.yaml").write_text(recipe + "distill: {teacher_logits: here}\n")
    (tmp_path / "off.yaml").write_text(recipe + "distill: {teacher: openllama-3b, alpha: 1.0}\n")
    hours = {name: plan(PlanArgs(f"{name}.yaml", tokens="8B", gpu="h100")) for name in ("taught", "stored", "off")}
    assert hours["taught"].job.teacher_flops == taught.job.teacher_flops
    assert hours["stored"].job.teacher_flops == hours["off"].job.teacher_flops == 0


@pytest.mark.parametrize(
    ("comment", "found"),
    [
        ("inheritune slice smollm2-135m --n 7 --out_dir here/start", True),
        ("inheritune slice   --ref smollm2-135m   --n 7 --out_dir here/start # as in the paper", True),
        ("inheritune slice smollm2-135m --n 7 --out_dir elsewhere", False),
        ("inheritune slice nobody/knows --n 7 --out_dir here/start", False),
    ],
)
def test_a_recipe_names_what_its_checkpoint_is_of(comment, found, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    budget = "train: {max_tokens: 1000000}"
    Path("r.yaml").write_text(f"#   {comment}\ninitial_checkpoint_dir: here/start\ndata: d\nout_dir: r\n{budget}\n")
    assert main(["plan", "r.yaml"]) == (0 if found else 2)
    printed = capsys.readouterr()
    assert "first 7 of 30 layers" in printed.out if found else "no checkpoint at here/start" in printed.err
    assert not found or re.search(r"this CPU +\S+ [GM]B", printed.out)


@pytest.mark.parametrize(
    "more",
    [
        "",
        "distill: {teacher: TEACHER}",
        "distill: {teacher_logits: STORED}",
        "train.trainable",
        "distill: {teacher: TEACHER, align: last}\ntrain.trainable",
    ],
)
def test_plan_says_what_pretrain_says(more, tmp_path, tokenizer_dir, caplog):
    """FLOPs, memory and a teacher's share; compiled, as `plan` assumes."""
    make_checkpoint(tmp_path / "start", tokenizer_dir, n_layer=2)
    make_checkpoint(tmp_path / "TEACHER", tokenizer_dir, n_layer=4)
    packed = make_packed(tmp_path / "data", tokenizer_dir)
    if "STORED" in more:
        teach(TeachArgs(str(tmp_path / "TEACHER"), packed, tmp_path / "STORED", max_seq_length=16))
    part = ', trainable: "lm_head,h.last:1"' if "trainable" in more else ""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"initial_checkpoint_dir: {tmp_path}/start\ndata: {packed}\nout_dir: {tmp_path}/run\nprecision: bf16-mixed\n"
        f"train: {{max_steps: 6, global_batch_size: 4, micro_batch_size: 2, max_seq_length: 16, lr_warmup_steps: 0"
        f"{part}}}\neval: {{interval: 3, max_iters: 2}}\nspeed: {{compile: true}}\n"
        + re.sub("TEACHER|STORED", rf"{tmp_path}/\g<0>", more.replace("train.trainable", ""))
    )
    found = plan(PlanArgs(recipe))
    caplog.set_level("INFO")
    result = pretrain(PretrainArgs(**{**read_recipe(recipe, PretrainArgs, "pretrain"), "dry_run": True}))
    told = caplog.text
    assert found.flops == pytest.approx(result.plan.flops)
    taught = found.job.flops_per_token + found.job.teacher_flops / found.job.tokens
    assert taught == pytest.approx(result.plan.flops_per_token)
    assert str(found.memory) in told
    share = re.search(r"([\d.]+% )for the teacher", str(found))
    assert (share[1] + "the teacher" in told) if "TEACHER" in more else share is None
    assert not part or str(found.job.trained) in told
