"""The two losses against float64 loops written from the formulas, without tensor operations."""

import math

import pytest
import torch

from modeling_sarcse import SarcseModelOutput
from sarcse.reconstruction import reconstruction_errors
from sarcse.training.losses import info_nce, sentence_keys, weighted_reconstruction

from .conftest import DEMO


def cosine(x, y):
    dot = sum(a * b for a, b in zip(x, y))
    return dot / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_info_nce_equals_its_formula(temperature):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 6, 9, generator=generator)
    total = 0.0
    for i, x in enumerate(first.tolist()):
        scores = [math.exp(cosine(x, y) / temperature) for y in second.tolist()]
        total -= math.log(scores[i] / sum(scores))
    assert info_nce(first, second, temperature).item() == pytest.approx(total / 6, rel=1e-5)


def test_info_nce_leaves_duplicates_out_of_the_sum():
    first, second = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
    groups = [0, 1, 0, 2]  # the third sentence repeats the first
    total = 0.0
    for i, x in enumerate(first.tolist()):
        kept = [j for j in range(4) if j == i or groups[j] != groups[i]]
        scores = {j: math.exp(cosine(x, second[j].tolist()) / 0.1) for j in kept}
        total -= math.log(scores[i] / sum(scores.values()))
    loss = info_nce(first, second, 0.1, keys=torch.tensor(groups))
    assert loss.item() == pytest.approx(total / 4, rel=1e-5)


def test_nothing_but_duplicates_gives_a_loss_of_zero_and_a_gradient_that_is_finite():
    first, second = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    first.retain_grad()
    loss = info_nce(first, second, 0.05, keys=torch.ones(3))
    loss.backward()
    assert loss.item() == 0 and first.grad.isfinite().all()


def test_sentence_keys_are_equal_for_equal_sentences_whatever_their_padding(tokenizer):
    """Keys are equal if and only if the ids are. Real, mostly different sentences, padded in three ways."""
    sentences = (DEMO / "sentences.txt").read_text().splitlines()[:500] * 2
    ids = tokenizer(sentences, truncation=True, max_length=32)["input_ids"]
    keys = []
    for side, length in (("right", 32), ("right", 40), ("left", 32)):
        padded = tokenizer.pad({"input_ids": ids}, "max_length", length, padding_side=side, return_tensors="pt")
        keys.append(sentence_keys(padded["input_ids"], padded["attention_mask"]))
    assert torch.equal(keys[0], keys[1]) and torch.equal(keys[0], keys[2])
    assert len(keys[0].unique()) == len(set(map(tuple, ids)))
    assert torch.equal(keys[0][:500], keys[0][500:])


def test_a_prefix_has_another_key_than_the_whole():
    """Even if the rest consists of the id 0."""
    ids = torch.tensor([[5, 0, 0], [5, 0, 1]])
    assert len(sentence_keys(ids, torch.tensor([[1, 1, 1], [1, 1, 0]])).unique()) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_float32(dtype):
    first, second = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(info_nce(first, second, 0.05), info_nce(first.float(), second.float(), 0.05))
    output = SarcseModelOutput(
        reconstruction=first[None],
        reconstruction_target=second[None],
        content_mask=torch.ones(1, 6).bool(),
        content_input_ids=torch.ones(1, 6).long(),
    )
    expected = (first.float() - second.float()).pow(2).mean(dim=1)
    assert torch.equal(reconstruction_errors(output)[0], expected)


def test_weighted_reconstruction_equals_its_formula():
    generator = torch.Generator().manual_seed(0)
    reconstruction, target = torch.randn(2, 3, 4, 5, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    token_weights, ids = torch.rand(10, generator=generator), torch.randint(10, (3, 4), generator=generator)
    output = SarcseModelOutput(
        reconstruction=reconstruction, reconstruction_target=target, content_mask=mask, content_input_ids=ids
    )
    numerator = denominator = 0.0
    for i in range(3):
        for j in range(4):
            if mask[i, j]:
                squares = [(a - b) ** 2 for a, b in zip(reconstruction[i, j].tolist(), target[i, j].tolist())]
                numerator += token_weights[ids[i, j]].item() * sum(squares) / 5
                denominator += token_weights[ids[i, j]].item()
    loss = weighted_reconstruction(output, token_weights)
    assert loss.item() == pytest.approx(numerator / denominator, rel=1e-5)
    part = weighted_reconstruction(output, token_weights, total_weight=torch.tensor(2 * denominator))
    assert part.item() == pytest.approx(numerator / denominator / 2, rel=1e-5)


def test_a_batch_without_weight_has_no_reconstruction_loss():
    vectors, ids = torch.ones(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)
    output = SarcseModelOutput(
        reconstruction=vectors, reconstruction_target=-vectors, content_mask=ids == 0, content_input_ids=ids
    )
    assert weighted_reconstruction(output, torch.zeros(1)).item() == 0.0


def test_without_a_reconstruction_there_is_no_loss_of_it():
    with pytest.raises(ValueError, match="call the model with `output_reconstruction=True`"):
        weighted_reconstruction(SarcseModelOutput(pooler_output=torch.ones(2, 3)), torch.ones(4))
