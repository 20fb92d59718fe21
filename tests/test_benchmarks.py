"""The benchmarks' arithmetic, at a tiny size: what they measure is not tested, for a test must not depend on time."""

import json
import re
import sys
from math import sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks import gpu_speed
from modeling_sarcse import SarcseModel

from .conftest import ENCODER, PROJECT, SENTENCES, run_python


sys.path.insert(0, str(PROJECT / "benchmarks"))
import study  # noqa: E402
import study_report  # noqa: E402


@pytest.mark.parametrize("length", [12, 40])
def test_the_flops_of_each_product_are_counted_once(length):
    """By hand, two FLOPs for a multiplication; sentences shorter and longer than what the decoder reconstructs."""
    config = gpu_speed.sarcse_config("tiny")
    d, layers, f, c = 32, 2, 64, config.channels
    assert (config.kernel_sizes, config.integration_kernel_size, config.decoder_length) == ([3, 4, 5], 3, 32)
    encoder = length * layers * (4 * d * d + 2 * d * f + 2 * length * d)  # projections, feed-forward, attention
    # Convolutions of widths 3 + 4 + 5, the mean of windows of width 3, and its integration.
    sentence_encoder = length * (12 * d * c + 3 * 3 * c) + 3 * 3 * c * d
    positions = min(length, 32)
    decoder = d * 3 * c * 32 + positions * (12 * 3 * c * c + 3 * c * d)  # expansion, convolutions, output
    for rows, reconstructed in [(1, 0), (1, 1), (6, 4)]:
        needed = rows * (encoder + sentence_encoder) + reconstructed * decoder
        assert gpu_speed.forward_flops(config, rows, length, reconstructed) == 2 * needed


def test_gpu_speed_runs_on_a_cpu(tmp_path):
    """Both steps, the plain one and the gradient cache's, with the utilisation that follows from its own figures."""
    small = ["--shapes", "tiny", "--batch_size", 4, "--length", 8, "--steps", 2, "--gradient_cache_mini_batch_size", 3]
    output = tmp_path / "speed.json"
    options = ["--variants", "sdpa", "gradient_cache", "--peak_teraflops", 2, "--output", output]
    process = run_python("-m", "benchmarks.gpu_speed", *small, *options, cwd=PROJECT)
    assert process.returncode == 0, process.stderr
    rows = json.loads(output.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["sdpa", "gradient_cache"]
    needed = 3 * gpu_speed.forward_flops(gpu_speed.sarcse_config("tiny"), 8, 8, 4)
    for row in rows:
        assert row["utilisation"] * 2e12 * row["seconds"] == pytest.approx(needed)
        assert row["minutes_a_million"] == pytest.approx(row["seconds"] / 4 * 1e6 / 60)


@pytest.fixture(scope="module")
def model():
    return SarcseModel.from_encoder_pretrained(str(ENCODER), channels=8)


def test_the_errors_of_the_study_equal_their_formulas(model, tokenizer):
    """Of both views of two sentences, which differ in dropout alone, token by token."""
    batch = tokenizer(SENTENCES[:2] * 2, padding=True, return_tensors="pt")
    torch.manual_seed(0)
    output = model.train()(**batch, output_reconstruction=True)
    model.eval()
    errors = {name: error(output) for name, error in study.ERRORS.items()}
    torch.testing.assert_close(errors["attached"], output.reconstruction_errors())
    (gradient,) = torch.autograd.grad(errors["attached"].sum(), output.last_hidden_state, retain_graph=True)
    (detached,) = torch.autograd.grad(output.reconstruction_errors().sum(), output.last_hidden_state)
    assert not torch.equal(gradient, detached)
    variance = output.reconstruction_target[output.content_mask].var(dim=0)
    for row in range(4):
        for position in range(int(output.content_mask[row].sum())):
            reconstruction, vectors = output.reconstruction[row, position], output.last_hidden_state
            other = vectors[(row + 2) % 4, position + 1]  # behind <s>, in the other view
            torch.testing.assert_close(errors["crosswise"][row, position], F.mse_loss(reconstruction, other))
            cosine = F.cosine_similarity(reconstruction, vectors[row, position + 1], dim=0)
            torch.testing.assert_close(errors["cosine"][row, position], 1 - cosine)
            squares = (reconstruction - vectors[row, position + 1]) ** 2
            standardised = variance.mean() * (squares / variance).mean()
            torch.testing.assert_close(errors["standardised"][row, position], standardised)
    for error in errors.values():
        assert torch.equal(error != 0, output.content_mask)


def test_a_shielded_encoder_has_no_gradient_from_the_reconstruction(tokenizer):
    """... whose value stays, without dropout; the new layers have one."""
    model = SarcseModel.from_encoder_pretrained(str(ENCODER), channels=8).eval()
    batch = tokenizer(SENTENCES[:2], padding=True, return_tensors="pt")
    plain = model(**batch, output_reconstruction=True, reconstructed_rows=1)
    model.register_forward_hook(study.shield_encoder, with_kwargs=True)
    shielded = model(**batch, output_reconstruction=True, reconstructed_rows=1)
    torch.testing.assert_close(shielded.reconstruction, plain.reconstruction)
    shielded.reconstruction_errors().sum().backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert model.sentence_encoder.integration.weight.grad.abs().sum() > 0


def test_a_simple_decoder_gives_what_its_layers_left_would(tokenizer):
    """Without its TextCNN the expansion's product alone; without anything the embedding."""
    batch = tokenizer(SENTENCES[:2], padding=True, return_tensors="pt")
    outputs = {}
    for shape in ("shallow", "none"):
        model = SarcseModel.from_encoder_pretrained(str(ENCODER), channels=8).eval()
        study.simplify_decoder(model.sentence_decoder, shape)
        outputs[shape] = model(**batch, output_reconstruction=True), model.sentence_decoder
    for row in range(2):
        for position in range(int(outputs["none"][0].content_mask[row].sum())):
            output, _ = outputs["none"]
            assert torch.equal(output.reconstruction[row, position], output.pooler_output[row])
            output, decoder = outputs["shallow"]
            product = output.pooler_output[row] @ decoder.expansion.weight[:, :, position] + decoder.expansion.bias
            torch.testing.assert_close(output.reconstruction[row, position], decoder.output(F.gelu(product)))


def test_without_its_textcnn_the_embedding_is_the_mean_of_the_content(tokenizer):
    model = SarcseModel.from_encoder_pretrained(str(ENCODER), channels=8).eval()
    study.skip_textcnn(model.sentence_encoder)
    for sentence in SENTENCES[:2]:
        output = model(**tokenizer(sentence, return_tensors="pt"))
        torch.testing.assert_close(output.pooler_output[0], output.last_hidden_state[0, 1:-1].mean(dim=0))


def test_layers_averaged_under_mean_pooling_are_the_pooler_of_that_name(tokenizer):
    batch = tokenizer(SENTENCES[:2], padding=True, return_tensors="pt")
    embeddings = {}
    for pooler in ("mean", "first_last_average"):
        model = SarcseModel.from_encoder_pretrained(str(ENCODER), pooler=pooler).eval()
        if pooler == "mean":
            study.average_first_last(model.encoder)
        embeddings[pooler] = model(**batch).pooler_output
    torch.testing.assert_close(embeddings["mean"], embeddings["first_last_average"])


def test_a_moving_anchor_averages_the_weights_of_the_encoder():
    encoder, anchor = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    anchor.weight.data.fill_(1.0)
    average = study.MovingAnchor(anchor, decay=0.75)
    for value in (3.0, 7.5):
        encoder.weight.data.fill_(value)
        average.on_step_end(model=SimpleNamespace(encoder=encoder))
    assert anchor.weight.item() == 3.0  # 1 -> 1.5 -> 3


def test_a_cutoff_takes_other_content_tokens_from_each_view(model, tokenizer):
    batch = dict(tokenizer([" ".join(SENTENCES[:2]), SENTENCES[0]] * 50, padding=True, return_tensors="pt"))
    torch.manual_seed(0)
    views = study.views_with_cutoff(0.2, model.config.special_token_ids, batch)
    assert torch.equal(views["input_ids"], batch["input_ids"].repeat(2, 1))
    whole = batch["attention_mask"].repeat(2, 1)
    content = whole.bool() & ~torch.isin(views["input_ids"], torch.tensor(tokenizer.all_special_ids))
    cut = whole != views["attention_mask"]
    assert not cut[~content].any()
    assert 0.17 < cut[content].float().mean() < 0.23
    first, second = cut.chunk(2)
    assert (first != second).any(dim=1).float().mean() > 0.9


@pytest.mark.parametrize("pooler", ["mean", "autoencoder"])
def test_weighted_tokens_move_the_mean_as_their_formula_says(pooler, tokenizer):
    """Position by position: of the encoder's vectors, or of what the integrating convolution makes of them."""
    model = SarcseModel.from_encoder_pretrained(str(ENCODER), channels=8, pooler=pooler)
    batch = tokenizer(SENTENCES[:2], padding=True, return_tensors="pt")
    weights = torch.rand(len(tokenizer), generator=torch.Generator().manual_seed(0))
    weights[tokenizer.all_special_ids] = 0.0
    with torch.no_grad():
        plain = model(**batch)
        study.weigh_tokens(model, weights)
        weighted = model(**batch).pooler_output
        for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"])):
            content = slice(1, int(mask.sum()) - 1)
            vectors, ones = plain.last_hidden_state[row : row + 1, content], mask[None, content].bool()
            if pooler == "autoencoder":
                vectors = model.sentence_encoder.integration(model.sentence_encoder.textcnn(vectors, ones))
            wanted = np.average(vectors[0], axis=0, weights=weights[ids[content]])
            np.testing.assert_allclose(weighted[row], wanted, rtol=0, atol=1e-5)
    assert (weighted - plain.pooler_output).abs().max() > 1e-3


def test_token_bias_groups_by_frequency(model, tokenizer):
    """The errors are those that token_importance tells; a group that no token is in has none."""
    rows = tokenizer(SENTENCES[:2], add_special_tokens=False)["input_ids"]
    frequent = rows[0][0]
    counts = np.ones(model.config.encoder_config.vocab_size, dtype=np.int64)  # a share of 1e-5 to 1e-4 each ...
    counts[frequent] = len(counts)  # ... but one of a half
    bias = study.token_bias(model, tokenizer, SENTENCES[:2], counts)
    told = [error for tokens in model.token_importance(SENTENCES[:2], tokenizer) for _, error in tokens]
    ids = [token for row in rows for token in row]
    assert len(told) == len(ids)
    few = [error for error, token in zip(told, ids) if token == frequent]
    many = [error for error, token in zip(told, ids) if token != frequent]
    assert [bias["error"][1], bias["error"][4]] == pytest.approx([np.mean(many), np.mean(few)], rel=1e-4)
    assert [value is None for value in bias["error"]] == [True, False, True, True, False]
    assert [value is None for value in bias["change"]] == [True, False, True, True, True], (
        "nothing like it to put there"
    )
    assert bias["change"][1] > 0


def test_the_densities_count_each_pair_in_its_group():
    counts = study.densities(np.array([0.99, -0.99, 0.01, 0.03, 0.01]), np.array([5.0, 0.0, 4.5, 4.0, 0.5]))
    found = {label: {place: n for place, n in enumerate(group) if n > 0} for label, group in counts.items()}
    assert found == {
        "4 to 5": {99: 1, 50: 1, 51: 1},
        "3 to 4": {},
        "2 to 3": {},
        "1 to 2": {},
        "0 to 1": {0: 1, 50: 1},
    }


def test_no_part_of_the_study_makes_a_run_twice():
    for part in study.PARTS:
        keys = [study.key_of(run) for run in study.runs_of(part, seeds=2)]
        assert len(keys) == len(set(keys)), part


def test_each_run_of_the_study_has_one_line():
    keys = [study.key_of(line) for line in study.read_lines()]
    assert len(keys) == len(set(keys)) > 0


def test_the_table_of_choices_has_each_once_beside_what_it_differs_least_from():
    lines = [
        {"encoder": study.ENCODER, "configuration": {**study.START, **choice}, "seed": 1, "dev": [[1, 60.0]]}
        for choice in study.PARTS["choices"]
    ]
    rows = [
        [cell.strip(" *") for cell in row.split("|")[1:3]] for row in study_report.choices_table(lines).splitlines()
    ]
    starts = [start for start, change in rows[2:] if not change]
    assert starts == list(study_report.STARTS)
    changes = [(start, change) for start, change in rows[2:] if change]
    firsts = ({}, study_report.SIMCSE, study_report.MEAN)
    assert len(set(changes)) == len(changes) == sum(choice not in firsts for choice in study.PARTS["choices"])
    assert ("COPY", "learning_rate 0.0001") in changes  # which is FAST
    assert ("STEEP", "contrastive_temperature 0.1") in changes
    assert ("SimCSE", "learning_rate 1e-05, contrastive_temperature 0.02") in changes


def test_differences_are_paired_and_their_interval_is_students():
    """2.776 is the 97.5% point of Student's distribution with 4 degrees of freedom, from a printed table."""
    one = {seed: {"dev": [[1, 0.0], [2, value]]} for seed, value in enumerate([5.0, 7.0, 6.0, 9.0, 8.0, 100.0])}
    other = {seed: {"dev": [[1, value]]} for seed, value in enumerate([4.0, 5.0, 3.0, 5.0, 3.0])}
    half = 2.776 * sqrt(2.5 / 5)  # the differences are 1 to 5
    assert study_report.difference(one, other, study_report.dev) == pytest.approx((3, 3 - half, 3 + half), rel=1e-3)


def test_the_tables_of_the_study_are_those_of_its_lines():
    page = study_report.PAGE.read_text(encoding="utf-8")
    assert study_report.with_tables(page, study.read_lines()) == page


@pytest.mark.parametrize(
    "path", [study_report.PAGE, study_report.PAGE.parents[2] / "README.md"], ids=["page", "README"]
)
def test_each_interval_that_is_quoted_is_in_a_table_of_the_study(path):
    """Or the same difference the other way round: what more seeds have moved is not quoted as it was."""
    interval = re.compile(r"\[([+-]\d+\.\d\d), ([+-]\d+\.\d\d)\]")
    page = study_report.PAGE.read_text(encoding="utf-8")
    known = {
        (float(low), float(high)) for row in page.splitlines() if row[:1] == "|" for low, high in interval.findall(row)
    }
    known |= {(-high, -low) for low, high in known}
    prose = " ".join(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] != "|")
    quoted = {(float(low), float(high)) for low, high in interval.findall(prose)}
    assert quoted and quoted <= known
