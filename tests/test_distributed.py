"""One optimisation step is the same on 1, 2 and 4 real processes, and in mini-batches."""

import json
import socket

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, XLNetConfig, XLNetModel

from .conftest import DEMO, ENCODER, PROJECT, flags, start_command, start_python, whole_model


BATCH = 16
WORLD_SIZES = (1, 2, 4)
# Of a step's length. Sums in another order differ by 2e-7 to 1.1e-6 in float32, depending on the number of threads.
ROUNDING = 3e-6
# What is compared between the world sizes, each one step of SGD on the same 16 sentences with dropout 0.
EXACT_RUNS = {
    "both-losses": {},
    "contrastive-loss": {"reconstruction_weight": 0},
    "reconstruction-loss": {"contrastive_temperature": 1e4, "reconstruction_weight": 10},
    "gradient-cache": {"gradient_cache_mini_batch_size": 3},
    # A rate so small that it drops nothing: equals the step of two passes, whose views are equal without dropout.
    "one-pass": {"view_dropout": 1e-9},
    "one-pass-cache": {"view_dropout": 1e-9, "gradient_cache_mini_batch_size": 3},
    # Views that drop dimensions, and are made with the mean of all sentences.
    "views": {"view_dropout": 0.25},
    "views-cache": {"view_dropout": 0.25, "gradient_cache_mini_batch_size": 3},
    "accumulated": {"gradient_accumulation_steps": 2, "gradient_cache_mini_batch_size": 4, "max_train_samples": 32},
}


def places(processes: int) -> list[dict[str, str]]:
    """The environment that torchrun, MPI and schedulers give each process; empty for a single process."""
    if processes == 1:
        return [{}]
    world = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        world["MASTER_PORT"] = free.getsockname()[1]
    return [
        {name: str(value) for name, value in {**world, "RANK": rank, "LOCAL_RANK": rank}.items()}
        for rank in range(processes)
    ]


def accelerate_launch(processes: int, *arguments: object) -> None:
    """`accelerate launch --cpu` from the project's root, once per process with its rank in the environment."""
    environments = places(processes)
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--mixed_precision=no"]
    launch += [f"--num_processes={processes}", f"--num_machines={processes}", "--main_process_ip=127.0.0.1"]
    launch += [f"--main_process_port={environments[0]['MASTER_PORT']}"]
    started = [start_python(*launch, "--module", *arguments, cwd=PROJECT, **place) for place in environments]
    try:
        for process in started:
            output, _ = process.communicate()
            assert process.returncode == 0, output
    finally:
        for process in started:
            process.kill()


def start_side_by_side(processes: int, *arguments: object) -> None:
    """The same without accelerate's command, as with torchrun."""
    started = [start_command("-m", *arguments, cwd=PROJECT, **place) for place in places(processes)]
    try:
        for command in started:
            done = command.wait()
            assert done.returncode == 0, done.stderr
    finally:
        for command in started:
            command.process.kill()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the models of every run under every world size, `{run}-{world size}`."""
    folder = tmp_path_factory.mktemp("runs")
    encoder = AutoModel.from_pretrained(ENCODER, add_pooling_layer=False)
    encoder.config.hidden_dropout_prob = encoder.config.attention_probs_dropout_prob = 0.0
    encoder.save_pretrained(folder / "encoder")
    AutoTokenizer.from_pretrained(ENCODER).save_pretrained(folder / "encoder")
    whole_model(str(folder / "encoder"), channels=4).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(ENCODER).save_pretrained(folder / "model")
    sizes = {"vocab_size": encoder.config.vocab_size, "d_model": 32, "n_head": 2, "n_layer": 1, "d_inner": 32}
    XLNetModel(XLNetConfig(**sizes, dropout=0.0)).save_pretrained(folder / "xlnet")
    AutoTokenizer.from_pretrained(ENCODER).save_pretrained(folder / "xlnet")
    (folder / "repeated.txt").write_text("A dog runs across the wet grass.\n" * BATCH)
    common = {"eval_strategy": "no", "eval_pairs": None, "save_strategy": "no", "max_train_samples": BATCH}
    common["use_cpu"] = "true"
    exact = {"model_name_or_path": folder / "model", "channels": None, "optim": "sgd", "learning_rate": 1}
    exact |= {"max_grad_norm": 0, "view_dropout": 0, "contrastive_temperature": 0.05}
    for world_size in WORLD_SIZES:
        common["per_device_train_batch_size"] = BATCH // world_size
        fields = {name: {**common, **exact, **options} for name, options in EXACT_RUNS.items()}
        if world_size < 4:
            fields["own"] = fields["contrastive-loss"]
            fields["xlnet"] = {**common, **exact, "model_name_or_path": folder / "xlnet"}
        if world_size == 1:
            fields["xlnet-start"] = {**fields["xlnet"], "learning_rate": 0}
            fields["start"] = {**common, **exact, "learning_rate": 0}
            long = {
                **common,
                **exact,
                "learning_rate": 0.01,
                "max_train_samples": 5 * BATCH + 3,
                "num_train_epochs": 2,
            }
            fields["long"] = {**long, "save_strategy": "steps", "save_steps": 4, "save_total_limit": 3}
        if world_size == 2:
            fields["dropout"] = {**common, "train_file": folder / "repeated.txt"}
            fields["dropout-again"] = {**common, "train_file": folder / "repeated.txt"}
        if world_size < 4:
            long["per_device_train_batch_size"] = BATCH // world_size
            long["resume_from_checkpoint"] = folder / "long-1" / "checkpoint-4"
            fields["resumed"] = {**long, "dataloader_num_workers": 2 * (world_size == 2)}
        fields = {f"{name}-{world_size}": values for name, values in fields.items()}
        (folder / "runs.json").write_text(
            json.dumps({name: flags(folder / name, **values) for name, values in fields.items()})
        )
        launch = accelerate_launch if world_size == 2 else start_side_by_side
        launch(world_size, "tests.distributed_runs", folder / "runs.json")
    return folder


def parameters(folder) -> torch.Tensor:
    """All parameters as one vector."""
    tensors = load_file(folder / "model.safetensors")
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / one.norm()).item()


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
@pytest.mark.parametrize("run", EXACT_RUNS)
def test_several_processes_take_the_step_of_one_on_the_same_global_batch(runs, run, world_size):
    """Measured on the steps themselves, so that a gradient of half the size could not hide behind the weights."""
    start, one, several = (parameters(runs / name) for name in ("start-1", f"{run}-1", f"{run}-{world_size}"))
    assert (one - start).norm() > 1e-3 * start.norm()
    assert difference(one - start, several - start) < ROUNDING


@pytest.mark.parametrize("run", ["one-pass", "one-pass-cache"])
def test_one_pass_for_two_equal_views_takes_the_step_of_two(runs, run):
    """Without dropout a second pass repeats the first, and the gradient flows back through one pass only."""
    start, two, one = (parameters(runs / name) for name in ("start-1", "both-losses-1", f"{run}-1"))
    assert difference(two - start, one - start) < ROUNDING


@pytest.mark.parametrize("world_size", WORLD_SIZES[:2])
def test_a_trainer_of_ones_own_takes_the_step_of_train_py(runs, world_size):
    """The trainer makes its own model, whose decoder gets no gradient."""
    start, one, own = (parameters(runs / name) for name in ("start-1", "contrastive-loss-1", f"own-{world_size}"))
    assert difference(one - start, own - start) < ROUNDING


def test_an_encoder_with_parameters_that_take_no_part_is_trained_on_several_processes(runs):
    """DistributedDataParallel waits for the gradient of every parameter, unless it is told to find unused ones."""
    start, one, two = (parameters(runs / name) for name in ("xlnet-start-1", "xlnet-1", "xlnet-2"))
    assert (one - start).norm() > 1e-3 * start.norm()
    assert difference(one - start, two - start) < ROUNDING


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(("whole", "in_parts"), [("both-losses", "gradient-cache"), ("views", "views-cache")])
def test_the_gradient_cache_takes_the_step_of_the_whole_batch(runs, world_size, whole, in_parts):
    start, plain, cached = (
        parameters(runs / name) for name in ("start-1", f"{whole}-{world_size}", f"{in_parts}-{world_size}")
    )
    assert difference(plain - start, cached - start) < ROUNDING


def test_each_process_and_each_view_draws_its_own_dropout_mask_reproducibly(runs):
    """All sentences are the same here, so that only dropout can make two embeddings differ."""
    ids, views = zip(*(torch.load(runs / f"dropout-2-views-{rank}.pt") for rank in (0, 1)))
    assert torch.equal(*ids) and (ids[0] == ids[0][0]).all()
    rows = torch.cat(views)  # 2 processes x 2 views x 8 sentences
    assert torch.cdist(rows, rows).fill_diagonal_(torch.inf).min() > 1e-3
    again = torch.cat([torch.load(runs / f"dropout-again-2-views-{rank}.pt")[1] for rank in (0, 1)])
    assert torch.equal(rows, again)
    assert torch.equal(parameters(runs / "dropout-2"), parameters(runs / "dropout-again-2"))


def test_a_run_goes_on_with_the_same_sentences_on_other_processes_and_workers(runs):
    """
    The remaining steps of the epoch and those of the next: a sentence too many, or one in another step, would lead to
    other weights.
    """
    start, whole, resumed = (parameters(runs / name) for name in ("start-1", "long-1", "resumed-2"))
    assert difference(whole - start, resumed - start) < 10 * ROUNDING
    one, several = (
        {
            tuple(row[row != 1].tolist())
            for rank in ranks
            for row in torch.load(runs / f"resumed-{n}-views-{rank}.pt")[0]
        }
        for n, ranks in ((1, [0]), (2, [0, 1]))
    )
    assert one == several and len(one) == BATCH


def test_labelled_texts_have_the_same_scores_on_several_processes(tmp_path):
    """Each process embeds a share of the texts."""
    texts = (DEMO / "sentences.txt").read_text().splitlines()[:61]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text, "label": len(text) % 3}) + "\n" for text in texts))
    scores = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        start_side_by_side(processes, "sarcse", "eval", ENCODER, "--labelled", file, "--output_dir", out)
        scores.append(json.loads((out / "results.json").read_text())["models"])
    assert scores[0] == scores[1]
