import json
import math
import re
import shutil
import subprocess
from functools import partial

import pytest
import tokenizers
import torch
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModel,
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    TrainerCallback,
)

from configuration_sarcse import __version__
from modeling_sarcse import SarcseModel
from sarcse.evaluation.embedding import encode
from sarcse.loading import load_model, tokenizer_as_loaded
from sarcse.reconstruction import reconstruction_errors, token_importance
from sarcse.training import losses
from sarcse.training.arguments import ModelArguments, SarcseTrainingArguments
from sarcse.training.build import build_model, build_trainer
from sarcse.training.checkpoints import check_settings
from sarcse.training.losses import batch_losses
from sarcse.training.parsing import parse_arguments
from sarcse.training.trainer import SarcseTrainer
from sarcse.training.views import dropping, two_views_of

from .conftest import (
    DEMO,
    ENCODER,
    PROJECT,
    SENTENCES,
    flags,
    random_encoder,
    refusal,
    run_command,
    run_python,
    start_command,
    with_whole_layers,
)
from .test_distributed import places


def test_output_folder_holds_what_a_user_needs(finished_run):
    folder, process = finished_run
    names = {path.name for path in folder.iterdir() if not path.name.startswith("checkpoint-")}
    assert names == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "configuration_sarcse.py",
        "modeling_sarcse.py",
        "modules.json",
        "sentence_bert_config.json",
        "train_results.json",
        "trainer_state.json",
        "sts_results.json",
        "sts_results.md",
        "training_curve.png",
        "training_curve.svg",
        "similarity_densities.png",
        "similarity_densities.svg",
        "alignment_uniformity.png",
        "alignment_uniformity.svg",
        "training_record.json",
    }
    results = json.loads((folder / "sts_results.json").read_text())
    assert list(results["models"]) == [f"before: {ENCODER}, mean", f"before: {ENCODER}, cls", f"after: {folder}"]
    assert results["differences"]["minus"] == f"before: {ENCODER}, mean", "the baseline that is hard to beat"
    assert (folder / "sts_results.md").read_text().strip() in process.stdout
    assert json.loads((folder / "train_results.json").read_text())["epoch"] == 1.0


def test_printed_lines_load_the_model(finished_run, tmp_path):
    folder, process = finished_run
    printed = process.stdout[process.stdout.index("from sentence_transformers") :]
    code, _, commands = printed.partition("To search in a file of texts, and to release the model for the Hub:\n")
    lines = code.splitlines()
    assert len([line for line in lines if line]) == 6
    assert commands.split("\n")[1:3] == [
        f'python -m sarcse search {folder} FILE "a question"',
        f"python -m model_card {folder} --release_dir {folder}/release",
    ]
    assert f"rm -r {folder}/checkpoint-*" in commands.splitlines()
    check = "assert embeddings.shape == (2, 128) and embeddings.isfinite().all()"
    loaded = run_python("-c", "\n".join([*lines, check]), cwd=tmp_path, HF_HOME=str(tmp_path / "hf_home"))
    assert loaded.returncode == 0, loaded.stderr


def test_sentence_transformers_loads_the_output_folder_with_its_own_pooling(finished_run):
    """Without the two files for it, sentence-transformers would silently pool the token vectors itself."""
    folder, _ = finished_run
    model, tokenizer = load_model(str(folder))
    embeddings = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu").encode(SENTENCES)
    torch.testing.assert_close(torch.from_numpy(embeddings), encode(model, tokenizer, SENTENCES), atol=1e-6, rtol=0)


def test_both_losses_are_logged_beside_the_total(finished_run):
    folder, _ = finished_run
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    weight = json.loads((folder / "training_record.json").read_text())["hyperparameters"]["reconstruction_weight"]
    losses = [line for line in history if "loss" in line]
    assert len(losses) == 4
    for line in losses:
        assert line["loss"] == pytest.approx(line["contrastive_loss"] + weight * line["reconstruction_loss"], rel=1e-4)
    evaluations = [line for line in history if "eval_pairs_spearman" in line]
    assert [line["step"] for line in evaluations] == [0, 2, 4]
    assert all({"eval_alignment", "eval_uniformity"} <= set(line) for line in evaluations)


def test_the_best_checkpoint_is_the_one_kept(finished_run):
    folder, _ = finished_run
    state = json.loads((folder / "trainer_state.json").read_text())
    scores = {line["step"]: line["eval_pairs_spearman"] for line in state["log_history"] if "eval_alignment" in line}
    best = max(scores, key=scores.get)
    assert state["best_metric"] == scores[best]
    kept = SarcseModel.from_pretrained(folder).state_dict()
    checkpoint = SarcseModel.from_pretrained(folder / f"checkpoint-{best}").state_dict()
    assert all(torch.equal(kept[name], checkpoint[name]) for name in kept)
    after = json.loads((folder / "sts_results.json").read_text())["models"][f"after: {folder}"]
    assert after["average"] == pytest.approx(scores[best], abs=1e-6)


def test_the_command_says_once_whether_the_training_helped(finished_run):
    folder, process = finished_run
    after = json.loads((folder / "sts_results.json").read_text())["differences"]["models"][f"after: {folder}"]
    value, (low, high) = after["average"], after["average_interval"]
    said = f"than {ENCODER} with mean pooling"
    (line,) = [line for line in process.stderr.splitlines() if said in line]
    assert said not in process.stdout
    worse = high < 0  # is said with positive numbers
    value, low, high = (-value, -high, -low) if worse else (value, low, high)
    assert f" {value:.2f} [{low:.2f}, {high:.2f}] on sts; the pairs of sts also picked the checkpoint." in line
    assert line.startswith("Better" if low > 0 and not worse else "Worse" if worse else "No better")


def test_several_processes_evaluate_the_start_together_and_one_of_them_speaks(tmp_path):
    started = [
        start_command(PROJECT / "train.py", *flags(tmp_path / "run", use_cpu="true"), cwd=tmp_path, **place)
        for place in places(2)
    ]
    processes = [command.wait() for command in started]
    assert [process.returncode for process in processes] == [0, 0], processes[0].stderr
    assert ["than" in process.stderr and "with mean pooling" in process.stderr for process in processes] == [
        True,
        False,
    ]
    assert [process.stderr.count("texts are cut at 32 tokens") for process in processes] == [1, 0]
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert [line["step"] for line in state["log_history"] if "eval_pairs_spearman" in line] == [0, 2]


def test_checkpoints_carry_the_code_too(finished_run):
    folder, _ = finished_run
    assert (folder / "checkpoint-2" / "modeling_sarcse.py").is_file()


def test_a_finished_run_is_not_trained_over(finished_run):
    folder, _ = finished_run
    process = run_command(PROJECT / "train.py", *flags(folder), cwd=folder.parent)
    assert process.returncode == 2
    assert "has checkpoints of an earlier run" in process.stderr and "--resume_from_checkpoint last" in process.stderr


def test_a_sarcse_model_can_be_trained_further(finished_run, tmp_path):
    folder, _ = finished_run
    options = {"model_name_or_path": folder, "channels": None, "max_train_samples": 8}
    process = run_command(PROJECT / "train.py", *flags(tmp_path / "more", **options), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert f"before: {folder}" in process.stdout
    wrong = run_command(PROJECT / "train.py", *flags(tmp_path / "x", **{**options, "channels": 8}), cwd=tmp_path)
    assert wrong.returncode == 2 and "was saved with channels=4: leave --channels out" in wrong.stderr


def test_simcse_is_a_configuration_of_the_same_program(tmp_path):
    options = {
        "pooler": "cls",
        "reconstruction_weight": 0,
        "channels": None,
        "eval_strategy": "no",
        "eval_pairs": None,
    }
    process = run_command(PROJECT / "train.py", *flags(tmp_path / "simcse", **options), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    model = AutoModel.from_pretrained(tmp_path / "simcse")
    assert model.config.pooler == "cls" and hasattr(model, "projection")
    assert not (tmp_path / "simcse" / "sts_results.json").exists(), "--eval_strategy no trains without STS data"


def first_step(tmp_path, **fields):
    """The trainer of a run, and the loss of its first batch without dropout."""
    trainer = build_trainer(*parse_arguments(flags(tmp_path / "out", report_to="none", **fields)))
    with_whole_layers(trainer.model)
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    return trainer, batch, trainer.compute_loss(trainer.model, batch, return_outputs=True)


def test_of_two_passes_one_forward_sees_two_views_of_every_sentence(tmp_path):
    trainer, batch, (loss, outputs) = first_step(tmp_path, view_dropout=0)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"].shape[0] == 8 and outputs.pooler_output.shape[0] == 16
    first, second = outputs.pooler_output.chunk(2)
    torch.testing.assert_close(first, second)  # no dropout: the same sentence twice, in the same order
    trainer.model.train()
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    first, second = trainer.compute_loss(trainer.model, batch, return_outputs=True)[1].pooler_output.chunk(2)
    assert (first != second).any(dim=1).all(), "with dropout each view has a mask of its own"


@pytest.mark.parametrize("pooler", ["words", "autoencoder", "textcnn", "mean", "cls"])
def test_one_pass_makes_both_views_of_the_encoders_vectors(tmp_path, pooler):
    """
    Each view sets some dimensions of all its vectors to three quarters of the batch's mean, and moves the others away
    from it so that the expectation stays. The target is not changed. Computed here view by view.
    """
    options = {"pooler": pooler, "view_dropout": 0.25}
    trainer, batch, _ = first_step(tmp_path, **options, reconstruction_weight=0 if pooler == "cls" else 1)
    seen = []
    trainer.model.encoder.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(output), with_kwargs=True
    )
    torch.manual_seed(3)
    _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    (encoded,) = seen
    target, mask = encoded.last_hidden_state, batch["attention_mask"].bool()
    vectors = target
    if pooler == "words":
        words = trainer.model.get_input_embeddings().weight[batch["input_ids"]]
        words = words / words.norm(dim=2, keepdim=True) * target.norm(dim=2, keepdim=True)
        vectors, target = torch.cat([target, words], dim=2), target + words
    assert len(vectors) == len(batch["input_ids"]) == 8
    content = mask & ~torch.isin(batch["input_ids"], torch.tensor(trainer.model.config.special_token_ids))
    torch.manual_seed(3)
    kept = (torch.nn.functional.dropout(torch.ones(16, 1, vectors.shape[2]), 0.25) > 0).chunk(2)
    centre = 0.75 * vectors[mask].mean(dim=0)
    for view, keep in zip(outputs.pooler_output.chunk(2), kept):
        changed = torch.where(keep, centre + (vectors - centre) / (1 - 0.25), centre)
        torch.testing.assert_close(view, trainer.model.sentence_encoder(changed, mask, content))
    if pooler != "cls":
        found = outputs.reconstruction_target[outputs.content_mask]
        torch.testing.assert_close(found, target[content])
        assert pooler == "words" or torch.equal(found, target[content])
        assert len(outputs.content_mask) == 8
        first = outputs.pooler_output[:8]
        assert torch.equal(outputs.reconstruction, trainer.model.sentence_decoder(first, outputs.content_mask))


def test_views_of_a_large_batch_do_not_overflow_in_float16():
    vectors = torch.full((64, 32, 8), 100.0, dtype=torch.float16)  # their sum exceeds 65,504, float16's maximum
    views = two_views_of(vectors, torch.ones(64, 32, dtype=torch.bool), 0.25)
    torch.testing.assert_close(views.unique(), torch.tensor([75.0, 75 + 25 / 0.75]).half(), atol=0.1, rtol=0)


def test_a_run_with_two_passes_does_not_go_on_with_one(tmp_path):
    (tmp_path / "run_settings.json").write_text('{"view_dropout": 0.0}')
    check_settings(tmp_path, {"view_dropout": 0.0})
    with pytest.raises(ValueError, match="run with view_dropout 0.0 .now 0.1."):
        check_settings(tmp_path, {"view_dropout": 0.1})


@pytest.mark.parametrize(
    "fields, rate",
    [
        ({}, 0.1),
        ({"view_dropout": 0.2}, 0.2),
        ({"view_dropout": 0}, None),
        ({"pooler": "textcnn"}, None),
        ({"pooler": "mean", "channels": None}, None),
        ({"reconstruction_weight": 0}, None),
        ({"pooler": "cls", "channels": None, "reconstruction_weight": 0}, None),
    ],
)
def test_one_pass_is_the_default_of_the_autoencoder_with_a_reconstruction(tmp_path, fields, rate):
    """SimCSE and the paper's form stay as in their papers. The settings of a run record what was used."""
    trainer, batch, (_, outputs) = first_step(tmp_path, **fields)
    assert trainer.view_dropout == rate and trainer.settings()["view_dropout"] == (rate or 0.0)
    assert len(outputs.last_hidden_state) == len(batch["input_ids"]) * (2 if rate is None else 1)


def test_reconstruction_weight_scales_its_loss_alone(tmp_path):
    trainer, batch, (loss, _) = first_step(tmp_path, reconstruction_weight=1.0, view_dropout=0)
    parts = {name: value.item() for name, value in trainer.losses.totals.items()}
    assert loss.item() == pytest.approx(parts["contrastive_loss"] + parts["reconstruction_loss"], rel=1e-6)
    trainer.args.reconstruction_weight = 3.0
    heavier = trainer.compute_loss(trainer.model, batch).item()
    assert heavier == pytest.approx(parts["contrastive_loss"] + 3 * parts["reconstruction_loss"], rel=1e-5)


def test_a_recipe_of_the_paper_trains_a_model_that_is_released(tmp_path):
    """
    On a small encoder, at the recipe's own rates. The release has the code and an ONNX file, and the training's folder
    explains tokens.
    """
    here = {"learning_rate": None, "channels": None, "contrastive_temperature": None}
    recipe = [PROJECT / "recipes" / "paper" / "bert-base.yaml", *flags(tmp_path / "model", **here)]
    process = run_command(PROJECT / "train.py", *recipe, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    log = json.loads((tmp_path / "model" / "trainer_state.json").read_text())["log_history"]
    rates = [line["learning_rate"] for line in log if "learning_rate" in line]
    assert rates == pytest.approx([3e-5, 3e-5 * 3 / 4, 3e-5 * 2 / 4, 3e-5 * 1 / 4])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", trust_remote_code=True)
    model = AutoModel.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert model.config.pooler == "textcnn" and all(token_importance(model, SENTENCES, tokenizer))
    command = ["-m", "model_card", tmp_path / "model", "--release_dir", tmp_path / "release"]
    process = run_command(*command, cwd=PROJECT)
    assert process.returncode == 0 and "Built and verified" in process.stdout, process.stderr
    assert (tmp_path / "release" / "onnx" / "model.onnx").is_file()
    released = AutoModel.from_pretrained(tmp_path / "release", trust_remote_code=True)
    assert (released.encode(SENTENCES, tokenizer) == model.encode(SENTENCES, tokenizer)).all()
    told = run_command(*command, "--plain", cwd=PROJECT)
    assert told.returncode == 2 and "(pooler textcnn; cls and mean need none)" in told.stderr


def test_without_reconstruction_the_decoder_is_frozen(tmp_path):
    """Every trainable parameter gets a gradient, as DistributedDataParallel requires."""
    for weight in (0.0, 1.0):
        trainer, _, (loss, _) = first_step(tmp_path, reconstruction_weight=weight)
        loss.backward()
        for name, parameter in trainer.model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            assert parameter.requires_grad or (weight == 0 and name.startswith("sentence_decoder.")), name


def test_the_record_says_with_which_code_the_model_was_trained(finished_run):
    """Version and commit, with a mark if the code was changed since that commit."""
    record = json.loads((finished_run[0] / "training_record.json").read_text())
    assert record["versions"]["sarcse"] == __version__
    git = ["git", "-C", str(PROJECT), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True).stdout.strip() if (PROJECT / ".git").exists() else ""
    assert (record["commit"] or "").removesuffix("-dirty") == head


def test_the_first_argument_is_the_output_folder_as_in_transformers(tmp_path):
    assert SarcseTrainingArguments(str(tmp_path), eval_strategy="no").output_dir == str(tmp_path)


@pytest.mark.parametrize("field", ["frequency_weighting", "train_sampling_strategy"])
def test_a_choice_that_does_not_exist_is_an_error_without_the_command_too(tmp_path, field):
    with pytest.raises(ValueError, match=f"--{field} must be one of .*, got 'other'"):
        SarcseTrainingArguments(str(tmp_path), **{field: "other"})


def test_a_baseline_of_evaluations_is_not_trained(tmp_path, saved_model):
    """A model that was saved with it can be scored (tests/test_eval_sts.py), but not trained."""
    folder = shutil.copytree(saved_model, tmp_path / "baseline")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pooler": "first_last_average"}))
    options = {"model_name_or_path": folder, "channels": None, "reconstruction_weight": 0}
    assert re.search("`pooler` must be one of .*, got 'first_last_average'", refusal(tmp_path, **options))


def test_an_output_folder_that_cannot_be_used_ends_in_a_message(tmp_path, tokenizer):
    """`refusal` trains into the folder `out`. In the last case it would overwrite the encoder it starts from."""
    (tmp_path / "out").touch()
    for folder in (tmp_path, tmp_path / "out"):
        assert refusal(folder).startswith(f"--output_dir {folder / 'out'}: ")
    encoder = random_encoder(tmp_path / "x" / "out", AutoModel.from_pretrained(ENCODER), tokenizer)
    refused = refusal(tmp_path / "x", model_name_or_path=encoder)
    assert "would overwrite the model that the training starts from" in refused


def test_new_layers_can_have_a_learning_rate_of_their_own(tmp_path):
    trainer, _, _ = first_step(tmp_path, autoencoder_learning_rate=0.5, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    decays = {parameter: group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        assert rates[parameter] == (0.0002 if name.startswith("encoder.") else 0.5), name
        assert decays[parameter] == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.1), name


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ([], "0.001"),
        (["--autoencoder_learning_rate", "2e-5"], "2e-05"),
        (["--pooler", "cls", "--reconstruction_weight", "0"], "1e-05"),
    ],
)
def test_new_layers_have_a_rate_of_their_own_where_there_is_something_to_reconstruct(options, rate):
    """SimCSE has one learning rate."""
    _, _, training = parse_arguments(["--learning_rate", "1e-5", *options])
    assert str(training.new_layers_learning_rate) == rate


def random_state_and_gradients(trainer, step) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The gradients of a step with seed 7, and the next random number after it."""
    trainer.model.zero_grad()
    torch.manual_seed(7)
    step()
    return torch.rand(1), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "fields",
    [
        {"view_dropout": 0},
        {"reconstruction_weight": 0},
        {"pooler": "cls", "reconstruction_weight": 0},
        {"pooler": "mean"},
        {"view_dropout": 0.1},
        {"view_dropout": 0.1, "pooler": "cls", "reconstruction_weight": 0},
    ],
)
@pytest.mark.parametrize("size", [3, 100])
def test_the_gradient_cache_gives_the_gradients_of_the_whole_graph_under_dropout(tmp_path, fields, size):
    """The reference makes the same forward passes in mini-batches, but keeps all activations until InfoNCE."""
    fields = {**fields, "channels": None if "pooler" in fields else 4}
    trainer, batch, _ = first_step(tmp_path, gradient_cache_mini_batch_size=size, **fields)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    rate = trainer.view_dropout

    def whole_graph():
        inputs = {name: tensor.repeat(1 if rate else 2, 1) for name, tensor in batch.items()}
        rows = [dict(zip(inputs, tensors)) for tensors in zip(*(t.split(size) for t in inputs.values()))]
        options = {"output_reconstruction": trainer.reconstruct, "views": dropping(rate)}
        if rate:  # the mean of all vectors, with the same dropout
            with torch.random.fork_rng(), torch.no_grad():
                read = [trainer.model(**row, **options).last_hidden_state for row in rows]
                read = [trainer.model.pooled_vectors(vectors, row["input_ids"]) for vectors, row in zip(read, rows)]
            sums = [(vectors * row["attention_mask"].unsqueeze(2)).sum(dim=(0, 1)) for vectors, row in zip(read, rows)]
            options["views"] = dropping(rate, torch.stack(sums).sum(dim=0) / batch["attention_mask"].sum())
        outputs = [trainer.model(**row, **options) for row in rows]
        embeddings = [output.pooler_output for output in outputs]
        if rate:  # first all first views, then all second views
            embeddings = [part[: len(part) // 2] for part in embeddings] + [
                part[len(part) // 2 :] for part in embeddings
            ]
        loss = batch_losses(torch.cat(embeddings), batch, trainer.args)["contrastive_loss"]
        if trainer.reconstruct:
            reconstructed = len(batch["input_ids"])
            weights = torch.cat([trainer.token_weights[o.content_input_ids] * o.content_mask for o in outputs])
            weights = weights[:reconstructed]
            errors = torch.cat([reconstruction_errors(output) for output in outputs])[:reconstructed]
            loss = loss + trainer.args.reconstruction_weight * (weights * errors).sum() / weights.sum()
        loss.backward()
        losses.append(loss.item())

    losses = []
    cached_random, cached = random_state_and_gradients(
        trainer, lambda: losses.append(trainer.training_step(trainer.model, dict(batch)).item())
    )
    whole_random, whole = random_state_and_gradients(trainer, whole_graph)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert torch.equal(cached_random, whole_random), "random numbers go on as if there had been one pass"
    for name in whole:
        assert (cached[name] - whole[name]).norm() <= 1e-6 * max(g.norm() for g in whole.values()), name


def test_another_loss_is_trained_and_logged_with_and_without_the_gradient_cache(tmp_path, monkeypatch):
    """As CONTRIBUTING.md says: it is returned by one function, and has a weight."""

    def with_length(embeddings, inputs, args):
        return {**batch_losses(embeddings, inputs, args), "length_loss": embeddings.pow(2).mean()}

    monkeypatch.setattr("sarcse.training.trainer.batch_losses", with_length)
    monkeypatch.setitem(losses.WEIGHTS, "length_loss", lambda args: 0.5)
    trainer, batch, (loss, outputs) = first_step(tmp_path, view_dropout=0)
    parts = {name: value.item() for name, value in trainer.losses.totals.items()}
    assert parts["length_loss"] == pytest.approx(outputs.pooler_output.pow(2).mean().item())
    assert loss.item() == pytest.approx(sum(parts.values()) - 0.5 * parts["length_loss"], rel=1e-6)
    trainer.current_gradient_accumulation_steps = 1
    gradients = {}
    for size in (None, 3):
        trainer.args.gradient_cache_mini_batch_size = size
        step = partial(trainer.training_step, trainer.model, dict(batch))
        gradients[size] = random_state_and_gradients(trainer, step)[1]
    largest = max(gradient.norm() for gradient in gradients[None].values())
    for name, gradient in gradients[None].items():
        assert (gradients[3][name] - gradient).norm() <= 1e-5 * largest, name
    assert "length_loss" in trainer.losses.means()


def test_equal_sentences_are_no_negatives_of_each_other(tmp_path):
    """Five copies of one sentence and three of another; without dropout, at temperature 1."""
    one, other = (DEMO / "sentences.txt").read_text().splitlines()[:2]
    (tmp_path / "repeated.txt").write_text("\n".join([one] * 5 + [other] * 3))
    fields = {"train_file": tmp_path / "repeated.txt", "contrastive_temperature": 1, "view_dropout": 0}
    trainer, batch, (_, outputs) = first_step(tmp_path, **fields)
    is_one = batch["input_ids"][:, 1] == trainer.processing_class(one)["input_ids"][1]
    assert is_one.sum() == 5
    a, b = outputs.pooler_output[:8][is_one][0], outputs.pooler_output[:8][~is_one][0]
    similarity = torch.cosine_similarity(a, b, dim=0).item()
    losses = [math.log(1 + negatives * math.exp(similarity - 1)) for negatives in (3, 5)]
    expected = (5 * losses[0] + 3 * losses[1]) / 8
    assert trainer.losses.totals["contrastive_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_a_full_disk_ends_in_a_message(tmp_path):
    """Before the training, as the model has 6 MB."""
    options = {"eval_strategy": "no", "eval_pairs": None, "save_strategy": "no", "max_train_samples": 8}
    arguments = flags(tmp_path / "model", **options)
    process = run_command(PROJECT / "train.py", *arguments, cwd=tmp_path, largest_file=2_000_000)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert re.search(
        "train.py: error: --output_dir .*nothing can be saved there .*File too large", process.stderr.splitlines()[-1]
    )


# --- Tokenizers ------------------------------------------------------------------------------------------------------


def encoder_with(folder, tokenizer, **fields) -> str:
    """A folder with a random RoBERTa and a tokenizer."""
    fields = {"vocab_size": len(tokenizer), "pad_token_id": 1, "max_position_embeddings": 40, **fields}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    RobertaModel(RobertaConfig(**fields, **sizes), add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def word_tokenizer(**special_tokens) -> PreTrainedTokenizerFast:
    """Words of the demo's sentences, without any template of special tokens."""
    words = sorted({word for line in (DEMO / "sentences.txt").read_text().splitlines() for word in line.split()})
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[PAD]", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special_tokens)


def test_a_tokenizer_that_does_not_fit_the_encoder_is_refused(tmp_path, tokenizer):
    small = encoder_with(tmp_path / "small", tokenizer, vocab_size=100)
    message = f"the tokenizer has {len(tokenizer)} tokens, but the encoder has only 100. Use the encoder's own"
    for load in (load_model, lambda source: build_model(ModelArguments(source))):
        with pytest.raises(ValueError, match=message):
            load(small)


def test_a_tokenizer_without_special_tokens_trains_if_it_can_pad(tmp_path):
    with pytest.raises(ValueError, match="nothing: the tokenizer has no padding token. Set its `pad_token`"):
        build_model(ModelArguments(encoder_with(tmp_path / "nothing", word_tokenizer())))
    source = encoder_with(tmp_path / "padding", word_tokenizer(pad_token="[PAD]"))
    trainer, _, (loss, outputs) = first_step(tmp_path, model_name_or_path=source)
    assert loss.isfinite() and trainer.model.config.special_token_ids == [1]
    lengths = [len(sentence.split()) for sentence in (DEMO / "sentences.txt").read_text().splitlines()]
    assert set(outputs.content_mask.sum(dim=1).tolist()) <= set(lengths), "every word is content"


def test_padding_on_the_left_gives_the_loss_of_padding_on_the_right(tmp_path, tokenizer):
    """RoBERTa counts positions from the first token, wherever it stands."""
    losses = []
    for side in ("left", "right"):
        tokenizer = AutoTokenizer.from_pretrained(ENCODER, padding_side=side)
        AutoModel.from_pretrained(ENCODER, add_pooling_layer=False).save_pretrained(tmp_path / side)
        tokenizer.save_pretrained(tmp_path / side)
        trainer, batch, (loss, _) = first_step(tmp_path, model_name_or_path=tmp_path / side)
        assert (batch["attention_mask"][:, 0] == 0).any() == (side == "left")
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def tokenizer_files(folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}


@pytest.mark.parametrize("streaming", [False, True])
def test_equal_trainings_save_the_encoders_own_tokenizer(tmp_path, tokenizer, streaming):
    """
    Whether the sentences are tokenised anew, come from the cache, or are streamed: programs that read tokenizer.json
    itself would otherwise cut sentences where the training did, and pad them.
    """
    AutoTokenizer.from_pretrained(ENCODER).save_pretrained(tmp_path / "own")
    own = tokenizer_files(tmp_path / "own")
    options = {"eval_pairs": None, "max_steps": 2, "health_sentences": 8}
    options |= {"streaming": "true", "max_train_samples": None} if streaming else {}
    for run in ("cold", "warm"):
        arguments = flags(tmp_path / run, **options)
        process = run_command(
            PROJECT / "train.py", *arguments, cwd=tmp_path, HF_DATASETS_CACHE=str(tmp_path / f"cache-{streaming}")
        )
        assert process.returncode == 0, process.stderr
        for folder in (tmp_path / run, tmp_path / run / "checkpoint-2"):
            assert tokenizer_files(folder) == own, folder


def test_what_a_caller_does_with_the_tokenizer_is_not_saved(tmp_path):
    """Neither before nor during the training. An encoder's own truncation and padding stay, in LoRA's folders too."""
    encoder = tmp_path / "encoder"
    AutoModel.from_pretrained(ENCODER, add_pooling_layer=False).save_pretrained(encoder)
    own = AutoTokenizer.from_pretrained(ENCODER)
    own.backend_tokenizer.enable_truncation(20, stride=2)
    own.backend_tokenizer.enable_padding(length=24, pad_id=1, pad_token="<pad>")
    own.save_pretrained(encoder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "own")
    expected = tokenizer_files(tmp_path / "own")
    assert json.loads(expected["tokenizer.json"])["truncation"]["max_length"] == 20
    given = AutoTokenizer.from_pretrained(encoder)

    class CallsTheTokenizer(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            given(SENTENCES, padding=True, truncation=True, max_length=7)

    arguments = {"max_steps": 2, "save_steps": 1, "eval_steps": 1, "per_device_train_batch_size": 8}
    for name in ("whole", "lora"):
        given(SENTENCES, padding=True, truncation=True, max_length=7)
        model = load_model(str(encoder), channels=4)[0]
        if name == "lora":
            parts = ["sentence_encoder", "sentence_decoder"]
            model = get_peft_model(model, LoraConfig(target_modules=["query"], modules_to_save=parts))
        trainer = SarcseTrainer(
            model,
            SarcseTrainingArguments(str(tmp_path / name), report_to="none", **arguments),
            train_dataset=(DEMO / "sentences.txt").read_text().splitlines()[:32],
            processing_class=given,
            callbacks=[CallsTheTokenizer()],
        )
        trainer.train()
        trainer.save_results()
        for folder in (tmp_path / name / "checkpoint-2", tmp_path / name):
            assert tokenizer_files(folder) == expected, folder


def test_a_tokenizer_written_in_python_is_saved(tmp_path):
    """It has neither a tokenizer.json nor a truncation of its own."""
    slow = ByT5Tokenizer()
    with tokenizer_as_loaded(slow):
        slow.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("é")["input_ids"] == [
        0xC3 + 3,
        0xA9 + 3,
        1,
    ]  # two bytes, and the end


def test_a_disk_that_is_full_when_the_tokenizer_is_saved_ends_in_a_message(tmp_path, tokenizer):
    """The tokenizer has 0.5 MB, and a model with one layer of 8 dimensions 0.3 MB."""
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8, "num_hidden_layers": 1}
    config = RobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, max_position_embeddings=40, **sizes)
    encoder = random_encoder(tmp_path / "encoder", RobertaModel(config, add_pooling_layer=False), tokenizer)
    options = {"model_name_or_path": encoder, "eval_strategy": "no", "eval_pairs": None, "max_train_samples": 8}
    for strategy in ("steps", "no"):
        arguments = flags(tmp_path / strategy, **options, save_strategy=strategy)
        process = run_command(PROJECT / "train.py", *arguments, cwd=tmp_path, largest_file=400_000)
        assert process.returncode == 1 and "Traceback" not in process.stderr, process.stderr
        assert re.search(
            "could not read or write a file. Is the disk full. the tokenizer could not be written: .*large",
            process.stderr.splitlines()[-1],
        )
