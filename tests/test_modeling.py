import copy
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import datasets
import numpy as np
import pandas
import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from torch.nn import functional as F
from transformers import (
    AutoModel,
    BartConfig,
    BertConfig,
    BertTokenizerFast,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    pipeline,
)

from configuration_sarcse import SarcseConfig
from modeling_sarcse import POOLERS, Mean, SameConv1d, SarcseModel, pack_left
from sarcse.evaluation.embedding import encode
from sarcse.loading import kind_of_model, load_model
from sarcse.reconstruction import reconstruction_errors, token_importance
from sarcse.training.health import HealthCheck

from .conftest import ENCODER, PROJECT, SENTENCES, run_python, whole_model


SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
# ModernBERT alternates local and global attention; its default ids belong to its own, larger vocabulary.
ENCODER_CONFIGS = {
    "roberta": RobertaConfig(**SHAPE, max_position_embeddings=40),
    "bert": BertConfig(**SHAPE, max_position_embeddings=40),
    "distilbert": DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=40),
    "mpnet": MPNetConfig(**SHAPE, max_position_embeddings=40),
    "modernbert": ModernBertConfig(**SHAPE, local_attention=4, max_position_embeddings=40),
}


@pytest.fixture(scope="module")
def wordpiece_tokenizer(tmp_path_factory):
    trainer = BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator(SENTENCES, vocab_size=200, min_frequency=1)
    vocabulary = tmp_path_factory.mktemp("wordpiece") / "vocab.txt"
    vocabulary.write_text("\n".join(sorted(trainer.get_vocab(), key=trainer.get_vocab().get)))
    return BertTokenizerFast(str(vocabulary), model_max_length=38)


@pytest.fixture(scope="module", params=list(ENCODER_CONFIGS))
def wrapped(request, tokenizer, wordpiece_tokenizer, tmp_path_factory):
    """A random encoder of each family, saved with a tokenizer and wrapped: (model, tokenizer, folder)."""
    own_tokenizer = wordpiece_tokenizer if request.param in ("bert", "distilbert") else tokenizer
    config = ENCODER_CONFIGS[request.param]
    config.vocab_size = len(own_tokenizer)
    config.pad_token_id, config.cls_token_id, config.sep_token_id = (
        own_tokenizer.pad_token_id,
        own_tokenizer.cls_token_id,
        own_tokenizer.sep_token_id,
    )
    config.bos_token_id, config.eos_token_id = config.cls_token_id, config.sep_token_id
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    own_tokenizer.save_pretrained(folder)
    return whole_model(str(folder), channels=8, decoder_length=12), own_tokenizer, folder


def embed(model, tokenizer, sentences, **options):
    with torch.no_grad():
        return model(**tokenizer(sentences, padding=True, return_tensors="pt", **options)).pooler_output


def test_any_text_encoder_can_be_wrapped_and_keeps_its_weights(wrapped):
    model, tokenizer, folder = wrapped
    own = AutoModel.from_pretrained(folder).state_dict()
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, own[name]), name
    assert not any("pooler" in name for name, _ in model.named_parameters())
    specials = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    assert specials <= set(model.config.special_token_ids)
    assert tokenizer.unk_token_id not in model.config.special_token_ids
    assert torch.isfinite(embed(model, tokenizer, SENTENCES)).all()


def test_embedding_does_not_depend_on_padding_or_batch_mates(wrapped):
    model, tokenizer, _ = wrapped
    together = embed(model, tokenizer, SENTENCES)
    alone = torch.cat([embed(model, tokenizer, [sentence]) for sentence in SENTENCES])
    padded = embed(model, tokenizer, SENTENCES[2:], pad_to_multiple_of=32)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together[2:], padded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooler", POOLERS)
def test_embedding_does_not_depend_on_the_padding_side(tokenizer, pooler):
    """For encoders whose positions do not depend on it: RoBERTa counts from the first token that is not padding."""
    torch.manual_seed(0)
    model = whole_model(str(ENCODER), pooler=pooler)
    right = embed(model, tokenizer, SENTENCES)
    left = embed(model, tokenizer, SENTENCES, padding_side="left")
    torch.testing.assert_close(left, right, atol=1e-5, rtol=0)


def test_content_is_packed_in_order_without_specials_and_padding():
    hidden_states = torch.arange(10.0).reshape(2, 5, 1)
    input_ids = torch.tensor([[0, 11, 12, 2, 1], [1, 0, 13, 2, 14]])
    content = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 0, 1]]).bool()
    packed, mask = pack_left(hidden_states, content)
    ids, same_mask = pack_left(input_ids, content)
    assert torch.equal(mask, same_mask)
    assert packed[:, :, 0].tolist() == [[1, 2, 0, 0, 0], [7, 9, 0, 0, 0]]
    assert ids[mask].tolist() == [11, 12, 13, 14]
    assert mask.sum(dim=1).tolist() == [2, 2]


def test_the_mean_sees_only_the_masked_positions():
    values = torch.tensor([[[1.0], [-5.0], [9.0]], [[-2.0], [-3.0], [7.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]]).bool()
    mean = Mean(SarcseConfig())
    assert mean(values, mask).tolist() == [[-2.0], [-2.5]]
    assert mean(values, torch.zeros_like(mask)).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
def test_a_convolution_that_keeps_the_length_is_that_of_torch(width):
    convolution, values = SameConv1d(3, 5, width), torch.randn(4, 6, 3)
    by_torch = F.conv1d(values.transpose(1, 2), convolution.weight, convolution.bias, padding="same")
    torch.testing.assert_close(convolution(values), by_torch.transpose(1, 2))


@pytest.mark.parametrize("pooler", ["words", "autoencoder", "textcnn"])
def test_sentence_encoder_equals_its_formula_written_out(tokenizer, pooler):
    """
    H_k = gelu(conv_k(X)) and conv(concat H_k), one sentence at a time. In the paper's form X are the content tokens'
    contextual vectors, and h is the mean over the positions; "autoencoder" adds the mean of all tokens. By default X
    are word vectors, and the softmax over the positions weighs them in a mean, which is added to that of all tokens.
    """
    torch.manual_seed(0)
    model = whole_model(str(ENCODER), pooler=pooler, channels=3, kernel_sizes=[2, 3])
    for parameter in model.sentence_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # not the zeros of a fresh model
    batch = tokenizer(SENTENCES[:1], return_tensors="pt")
    with torch.no_grad():
        output = model(**batch)
        vectors = output.last_hidden_state[0].double()
        table = model.get_input_embeddings().weight.double()
        words = [table[token] for token in batch["input_ids"][0]]
        words = torch.stack([w * x.pow(2).sum().sqrt() / w.pow(2).sum().sqrt() for w, x in zip(words, vectors)])
        tokens = words if pooler == "words" else vectors[1:-1]  # <s> and </s> dropped

        def convolve(sequence, convolution):
            weight, bias = convolution.weight.double(), convolution.bias.double()  # (out, in, k), (out,)
            left = (weight.shape[2] - 1) // 2
            rows = []
            for position in range(len(sequence)):
                total = bias.clone()
                for tap in range(weight.shape[2]):
                    if 0 <= position + tap - left < len(sequence):
                        total += weight[:, :, tap] @ sequence[position + tap - left]
                rows.append(total)
            return torch.stack(rows)

        encoder = model.sentence_encoder
        scales = torch.cat([F.gelu(convolve(tokens, conv)) for conv in encoder.textcnn.convolutions], dim=1)
        integrated = convolve(scales, encoder.integration)
        weights = integrated.exp() / integrated.exp().sum(dim=0)
        expected = (weights * words).sum(dim=0) if pooler == "words" else integrated.mean(dim=0)
        expected += vectors.mean(dim=0) if pooler != "textcnn" else 0
    torch.testing.assert_close(output.pooler_output[0].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"channels": 5, "activation": "relu"}], ids=str)
@pytest.mark.parametrize("pooler", ["words", "autoencoder"])
def test_fresh_layers_leave_the_means(tokenizer, pooler, options):
    """
    Training starts from mean pooling, by default of contextual and of word vectors, not from random convolutions. The
    TextCNN still gets gradients.
    """
    model = load_model(str(ENCODER), pooler=pooler, **options)[0]
    mean = load_model(str(ENCODER), pooler="mean")[0]
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    output = mean(**batch)
    expected = output.pooler_output
    if pooler == "words":
        words = mean.get_input_embeddings().weight[batch["input_ids"]]
        words = words / words.norm(dim=2, keepdim=True) * output.last_hidden_state.norm(dim=2, keepdim=True)
        number = batch["attention_mask"].sum(dim=1, keepdim=True)
        expected = expected + (words * batch["attention_mask"].unsqueeze(2)).sum(dim=1) / number
    torch.testing.assert_close(model(**batch).pooler_output, expected)
    model(**batch).pooler_output.pow(2).sum().backward()
    assert model.sentence_encoder.integration.weight.grad.count_nonzero() > 0


def test_fresh_layers_of_the_papers_form_have_ordinary_weights(tokenizer):
    """So each of them has an effect, and a gradient in the first step."""
    model = load_model(str(ENCODER), pooler="textcnn")[0]
    output = model(**tokenizer(SENTENCES, padding=True, return_tensors="pt"), output_reconstruction=True)
    reconstruction_errors(output).sum().backward()
    layers = {name: weight for name, weight in model.named_parameters() if name.startswith("sentence_")}
    assert len(layers) == 2 * (4 + 5)
    for name, weight in layers.items():
        assert weight.grad.count_nonzero() > 0, name
        assert (weight.count_nonzero() > 0) == name.endswith("weight"), "biases begin at zero"


@pytest.mark.parametrize("options", [{}, {"channels": 5, "activation": "relu"}], ids=str)
def test_fresh_decoder_gives_the_embedding_at_every_position(tokenizer, options):
    """So each error is a distance from the embedding."""
    model = load_model(str(ENCODER), **options)[0]
    with torch.no_grad():
        output = model(**tokenizer(SENTENCES[0], return_tensors="pt"), output_reconstruction=True)
    for reconstruction in output.reconstruction[output.content_mask]:
        torch.testing.assert_close(reconstruction, output.pooler_output[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooler", ["words", "textcnn"])
def test_reconstruction_covers_the_first_content_tokens(tokenizer, pooler):
    """The targets are contextual vectors; where the pooler reads word vectors, too, both are added up."""
    model = whole_model(str(ENCODER), pooler=pooler, channels=4, decoder_length=5)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    output = model(**batch, output_reconstruction=True)
    assert output.reconstruction.shape == output.reconstruction_target.shape == (4, 5, 128)
    content = [tokenizer(sentence, add_special_tokens=False).input_ids[:5] for sentence in SENTENCES]
    assert [ids[mask].tolist() for ids, mask in zip(output.content_input_ids, output.content_mask)] == content
    target, words = output.last_hidden_state[0, 1:6], model.get_input_embeddings().weight[batch["input_ids"][0, 1:6]]
    if pooler == "words":
        target = target + words * target.norm(dim=1, keepdim=True) / words.norm(dim=1, keepdim=True)
    torch.testing.assert_close(output.reconstruction_target[0], target)
    assert not output.reconstruction_target.requires_grad
    assert reconstruction_errors(output)[2].count_nonzero() == len(content[2])
    first = model(**batch, output_reconstruction=True, reconstructed_rows=2)
    torch.testing.assert_close(reconstruction_errors(first), reconstruction_errors(output)[:2])
    assert torch.equal(first.content_input_ids, output.content_input_ids[:2])
    assert torch.equal(first.pooler_output, output.pooler_output)


@pytest.mark.parametrize("pooler", ["autoencoder", "textcnn"])
def test_decoder_equals_its_formula_written_out(tokenizer, pooler):
    """
    The transposed convolution by torch's own module, then the TextCNN over the content tokens; by default added to h.
    Token importance is the error of this.
    """
    model = whole_model(str(ENCODER), pooler=pooler, channels=4, decoder_length=7)
    for parameter in model.sentence_decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # not the zeros of a fresh model
    batch = tokenizer(SENTENCES[2], return_tensors="pt")
    with torch.no_grad():
        output = model(**batch, output_reconstruction=True)
        number = int(output.content_mask.sum())
        assert 0 < number < 7
        decoder = model.sentence_decoder
        expanded = F.gelu(decoder.expansion(output.pooler_output.unsqueeze(-1)))[:, :, :number]
        scales = [F.gelu(F.conv1d(expanded, c.weight, c.bias, padding="same")) for c in decoder.textcnn.convolutions]
        expected = decoder.output(torch.cat(scales, dim=1).transpose(1, 2))
        expected += output.pooler_output if pooler == "autoencoder" else 0
    torch.testing.assert_close(output.reconstruction[:, :number], expected, atol=1e-5, rtol=1e-5)
    errors = (expected - output.last_hidden_state[:, 1 : number + 1]).pow(2).mean(dim=2)[0]  # without <s>
    (tokens,) = token_importance(model, [SENTENCES[2]], tokenizer)
    assert [error for _, error in tokens] == pytest.approx(errors.tolist(), rel=1e-4)


def test_cls_pooler_has_the_tanh_layer_in_training_only(tokenizer):
    model = load_model(str(ENCODER), pooler="cls")[0]
    for dropout in model.modules():
        if isinstance(dropout, torch.nn.Dropout):
            dropout.p = 0.0
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    first = model(**batch).last_hidden_state[:, 0]
    assert torch.equal(model(**batch).pooler_output, first)
    expected = torch.tanh(first @ model.projection.weight.T + model.projection.bias)
    torch.testing.assert_close(model.train()(**batch).pooler_output, expected)


def test_mean_pooler_is_the_mean_over_all_attended_tokens(tokenizer):
    model = load_model(str(ENCODER), pooler="mean")[0]
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch)
    for row, length in enumerate(batch.attention_mask.sum(dim=1)):
        torch.testing.assert_close(output.pooler_output[row], output.last_hidden_state[row, :length].mean(dim=0))


def test_under_mean_pooling_each_token_is_reconstructed_as_the_embedding(tokenizer):
    model = load_model(str(ENCODER), pooler="mean")[0].eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    output = model(**batch, output_reconstruction=True, reconstructed_rows=1)
    vectors = output.last_hidden_state[0, : int(batch["attention_mask"][0].sum())]
    torch.testing.assert_close(output.pooler_output[0], vectors.mean(dim=0))
    errors = (vectors.mean(dim=0) - vectors[1:-1]).pow(2).mean(dim=1)  # without <s> and </s>
    torch.testing.assert_close(reconstruction_errors(output)[0, : len(errors)], errors)
    assert reconstruction_errors(output)[0, len(errors) :].eq(0).all() and len(output.content_mask) == 1
    (tokens,) = token_importance(model, SENTENCES[:1], tokenizer)
    assert [error for _, error in tokens] == pytest.approx(errors.tolist(), rel=1e-5)


@pytest.mark.parametrize("pooler", [name for name, pooler in POOLERS.items() if pooler.decoder is None])
def test_the_other_poolers_do_not_reconstruct(pooler, tokenizer):
    model = whole_model(str(ENCODER), pooler=pooler)
    with pytest.raises(ValueError, match="has no reconstruction"):
        model(**tokenizer(SENTENCES, padding=True, return_tensors="pt"), output_reconstruction=True)


@pytest.mark.parametrize("sentence", ["", " ", "a", "</s>", "🙂", "long " * 1000])
def test_every_sentence_has_a_finite_embedding(trained_like_model, tokenizer, sentence):
    embedding = embed(trained_like_model, tokenizer, [sentence], truncation=True)
    assert torch.isfinite(embedding).all()
    assert embedding.norm() > 0


def test_token_importance_gives_each_content_token_its_error(trained_like_model, tokenizer):
    trained_like_model.train()
    try:
        importance = token_importance(trained_like_model, SENTENCES + [""], tokenizer)
        assert trained_like_model.training, "the mode is left as it was"
    finally:
        trained_like_model.eval()
    assert ["".join(token for token, _ in tokens) for tokens in importance] == SENTENCES + [""]
    with torch.no_grad():
        output = trained_like_model(**tokenizer(SENTENCES[0], return_tensors="pt"), output_reconstruction=True)
    errors = (output.reconstruction - output.reconstruction_target)[0, : len(importance[0])].pow(2).mean(dim=1)
    torch.testing.assert_close(torch.tensor([error for _, error in importance[0]]), errors, atol=1e-5, rtol=1e-5)


def test_token_importance_joins_the_bytes_of_a_character(trained_like_model, tokenizer):
    (tokens,) = token_importance(trained_like_model, ["Ça va 🙂"], tokenizer)
    assert [text for text, _ in tokens] == ["Ç", "a", " v", "a", " ", "🙂"]
    batch = tokenizer("Ça va 🙂", return_tensors="pt")
    with torch.no_grad():
        errors = reconstruction_errors(trained_like_model(**batch, output_reconstruction=True))[0]
    assert tokens[0][1] == pytest.approx(errors[:2].mean().item(), abs=1e-6)
    assert tokens[-1][1] == pytest.approx(
        errors[len(tokens) : int(batch.attention_mask.sum()) - 2].mean().item(), abs=1e-6
    )


def test_token_importance_has_unknown_tokens_which_are_content(trained_like_model, tokenizer):
    (tokens,) = token_importance(trained_like_model, ["A <unk> runs."], tokenizer)
    assert "".join(text for text, _ in tokens) == "A <unk> runs."


def test_save_and_load_reproduce_every_tensor_and_output(wrapped, tmp_path):
    model, tokenizer, _ = wrapped
    model.save_pretrained(tmp_path)
    loaded = SarcseModel.from_pretrained(tmp_path)
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name
    buffers = dict(loaded.named_buffers())
    for name, buffer in model.named_buffers():  # also those that are not saved
        assert torch.equal(buffer, buffers[name]), name
    assert torch.equal(embed(model, tokenizer, SENTENCES), embed(loaded, tokenizer, SENTENCES))
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        one = model(**batch, output_reconstruction=True)
        other = loaded(**batch, output_reconstruction=True)
    assert torch.equal(one.reconstruction, other.reconstruction)


def test_loads_with_trust_remote_code_where_the_project_is_not(saved_model, trained_like_model, tokenizer, tmp_path):
    """As from the Hub: in a new process in another folder, without this project."""
    script = """
import json, sys
from transformers import AutoModel, AutoTokenizer
folder, sentences = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model, info = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
assert type(model).__module__.startswith("transformers_modules."), type(model)
embeddings = model(**tokenizer(sentences, padding=True, return_tensors="pt")).pooler_output
model.save_pretrained("again")
print(json.dumps([embeddings.tolist(), tokenizer.model_max_length]))
"""
    assert {path.name for path in saved_model.glob("*.py")} == {"configuration_sarcse.py", "modeling_sarcse.py"}
    cache = {"HF_HOME": str(tmp_path / "hf_home")}
    process = run_python("-c", script, saved_model, json.dumps(SENTENCES), cwd=tmp_path, **cache)
    assert process.returncode == 0, process.stderr
    embeddings, max_length = json.loads(process.stdout.splitlines()[-1])
    torch.testing.assert_close(
        torch.tensor(embeddings), embed(trained_like_model, tokenizer, SENTENCES), atol=1e-6, rtol=0
    )
    assert max_length == 128
    # A model loaded in this way can be saved again, with its code.
    assert (tmp_path / "again" / "modeling_sarcse.py").read_bytes() == (PROJECT / "modeling_sarcse.py").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_give_nearly_the_same_embedding(saved_model, trained_like_model, tokenizer, dtype):
    half = SarcseModel.from_pretrained(saved_model, dtype=dtype)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = half(**batch, output_reconstruction=True)
    assert output.pooler_output.dtype == dtype
    assert reconstruction_errors(output).dtype == torch.float32
    similarity = F.cosine_similarity(output.pooler_output.float(), embed(trained_like_model, tokenizer, SENTENCES))
    assert (similarity > 0.999).all()


def test_gradient_checkpointing_gives_the_same_gradients(tokenizer):
    def gradients(checkpointing):
        torch.manual_seed(0)
        model = whole_model(str(ENCODER), channels=4).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert all(layer.gradient_checkpointing for layer in model.encoder.encoder.layer)
        torch.manual_seed(1)  # the same dropout
        output = model(**tokenizer(SENTENCES, padding=True, return_tensors="pt"), output_reconstruction=True)
        (output.pooler_output.sum() + reconstruction_errors(output).sum()).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name], msg=name)


def test_attention_is_sdpa_by_default_and_eager_on_request(wrapped):
    model, tokenizer, folder = wrapped
    eager = whole_model(str(folder), channels=8, decoder_length=12, attn_implementation="eager")
    assert eager.encoder.config._attn_implementation == "eager"
    if model.encoder._supports_sdpa:
        assert model.encoder.config._attn_implementation == "sdpa"
    eager.load_state_dict(model.state_dict())
    torch.testing.assert_close(
        embed(eager, tokenizer, SENTENCES), embed(model, tokenizer, SENTENCES), atol=1e-5, rtol=1e-5
    )


def test_outputs_can_be_a_tuple(trained_like_model, tokenizer):
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        pooler_output, last_hidden_state = trained_like_model(**batch, return_dict=False)
        output = trained_like_model(**batch, output_hidden_states=True)
    assert torch.equal(pooler_output, output.pooler_output)
    assert torch.equal(last_hidden_state, output.hidden_states[-1])


def test_a_sarcse_folder_is_not_wrapped_again(saved_model, trained_like_model, tokenizer):
    model, _ = load_model(str(saved_model))
    np.testing.assert_array_equal(model.encode(SENTENCES), trained_like_model.encode(SENTENCES, tokenizer))


def test_missing_weights_are_reported_and_a_language_model_head_is_not(tmp_path, tokenizer, caplog, capsys):
    encoder = AutoModel.from_pretrained(ENCODER, add_pooling_layer=False)
    state = encoder.state_dict()
    del state["encoder.layer.1.output.dense.bias"]
    encoder.save_pretrained(tmp_path, state_dict=state)
    tokenizer.save_pretrained(tmp_path)
    caplog.clear()
    capsys.readouterr()
    load_model(str(tmp_path))
    assert "lacks some weights of the encoder, which are now random: encoder.layer.1.output.dense.bias." in caplog.text
    caplog.clear()
    load_model(str(ENCODER))  # saved with its masked-LM head
    assert caplog.text == "" and "UNEXPECTED" not in capsys.readouterr().err


def test_what_is_no_text_encoder_is_refused(tmp_path, tokenizer):
    BartConfig(vocab_size=len(tokenizer), d_model=8, encoder_layers=1, decoder_layers=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a text encoder"):
        load_model(str(tmp_path))


# --- A loaded encoder, and a model of 0.2.0 --------------------------------------------------------------------------


def test_a_loaded_encoder_is_taken_as_it_is():
    """No random encoder is built and discarded, and the encoder's dtype is kept."""
    encoder = AutoModel.from_pretrained(ENCODER, add_pooling_layer=False, dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    model = SarcseModel(SarcseConfig(encoder_config=encoder.config), encoder=encoder)
    assert model.encoder is encoder and model.config.encoder_config is encoder.config
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_loaded_encoder_of_another_size_is_refused():
    encoder = AutoModel.from_pretrained(ENCODER)
    with pytest.raises(ValueError, match="vectors of size 128, but the configuration says 768"):
        SarcseModel(SarcseConfig(), encoder=encoder)


def test_an_unknown_pooler_is_refused():
    with pytest.raises(ValueError, match="`pooler` must be one of words, autoencoder, textcnn, .*got 'first'"):
        load_model(str(ENCODER), pooler="first")[0]


@pytest.mark.parametrize("pooler", POOLERS)
def test_a_model_of_version_0_2_0_loads_as_it_was(pooler, tmp_path):
    """The weights have the same names, and its configuration lacks the one field that was added since."""
    model = whole_model(str(ENCODER), pooler=pooler, channels=4, kernel_sizes=[2, 3])
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("normalize") is False
    (tmp_path / "config.json").write_text(json.dumps(config))
    modules = (tmp_path / "modules.json").read_text()
    own = "modeling_sarcse.SarcseTransformer"  # which is in the code beside such a model
    (tmp_path / "modules.json").write_text(modules.replace("sentence_transformers.models.Transformer", own))
    assert own in (tmp_path / "modules.json").read_text() and kind_of_model(str(tmp_path)) == "sarcse"
    loaded, info = SarcseModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and loaded.config.normalize is False
    of_textcnn = (
        "sentence_encoder.textcnn.convolutions.0 sentence_encoder.textcnn.convolutions.1 "
        "sentence_encoder.integration sentence_decoder.expansion sentence_decoder.textcnn.convolutions.0 "
        "sentence_decoder.textcnn.convolutions.1 sentence_decoder.output"
    )
    layers = {**dict.fromkeys(("words", "autoencoder", "textcnn"), of_textcnn), "cls": "projection"}
    names = {f"{layer}.{kind}" for layer in layers.get(pooler, "").split() for kind in ("weight", "bias")}
    assert {name for name in loaded.state_dict() if not name.startswith("encoder.")} == names
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


# --- Calls that would go wrong without a word ------------------------------------------------------------------------


def test_keywords_that_are_no_fields_are_refused(saved_model):
    """The configuration would keep them, and so publish a token."""
    for folder in (ENCODER, saved_model):
        with pytest.raises(ValueError, match="load_model has no argument poolr, token"):
            load_model(str(folder), token="hf_secret", poolr="mean")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"text": SENTENCES}, "is a table: pass one of its columns"),
        (datasets.Dataset.from_dict({"text": SENTENCES}), "is a table: pass one of its columns"),
        (pandas.DataFrame({"text": SENTENCES}), "is a table: pass one of its columns"),
        ([SENTENCES[0], ("a", "pair")], r"number 1, counted from 0, is \('a', 'pair'\)"),
        ([SENTENCES[0], None], "number 1, counted from 0, is None"),
        ([SENTENCES[0], "lone \ud800"], r"number 1, counted from 0, is 'lone \\ud800'"),
    ],
    ids=["dict", "Dataset", "DataFrame", "pair", "None", "lone surrogate"],
)
def test_what_is_no_list_of_sentences_is_refused(tokenizer, given, message):
    """A table's column names and pairs would be encoded as sentences, by the model's `encode` and the library's."""
    model = whole_model(str(ENCODER), channels=4)
    with pytest.raises(ValueError, match=message):
        model.encode(given, tokenizer)
    with pytest.raises(ValueError, match=message):
        encode(model, tokenizer, given)


def test_long_texts_are_cut_at_the_encoders_limit(tokenizer, tmp_path):
    """Also where the tokenizer states none; in `token_importance` and a folder's pipeline, too."""
    model = whole_model(str(ENCODER), channels=4)
    text = " ".join(SENTENCES * 100)
    expected = model.encode([text], tokenizer)
    unlimited = copy.deepcopy(tokenizer)
    unlimited.model_max_length = 10**30
    np.testing.assert_array_equal(model.encode([text], unlimited), expected)
    model.save_pretrained(tmp_path)
    unlimited.save_pretrained(tmp_path)
    piped = pipeline("feature-extraction", model=str(tmp_path), trust_remote_code=True)(text)
    np.testing.assert_allclose(np.array(piped), expected, atol=1e-6)
    assert len(token_importance(model, [text], unlimited)[0]) == model.config.decoder_length


@pytest.mark.parametrize(
    "call", [{"padding": True}, {"truncation": True, "max_length": 4}, {"truncation": False}], ids=str
)
def test_another_thread_may_call_the_same_tokenizer(trained_like_model, tokenizer, call):
    """A fast tokenizer stores where to cut and whether to pad, for all threads."""
    texts = [*SENTENCES, "long " * 1000]
    expected = trained_like_model.encode(texts, tokenizer)
    running = True

    def other_thread() -> None:
        while running:
            tokenizer(SENTENCES, **call)

    thread = threading.Thread(target=other_thread)
    thread.start()
    try:
        for _ in range(40):
            np.testing.assert_allclose(trained_like_model.encode(texts, tokenizer), expected, atol=1e-5)
    finally:
        running = False
        thread.join()


def test_encoding_leaves_every_module_in_its_mode(tokenizer):
    """As a caller may have set it: an encoder that is frozen in evaluation mode below a model in training mode."""
    model = whole_model(str(ENCODER), channels=4).train()
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    health = HealthCheck(tokenizer(SENTENCES * 4)["input_ids"], model.config, np.ones(len(tokenizer)))
    for call in (model.encode, partial(token_importance, model, tokenizer=tokenizer), lambda _: health(model)):
        call(SENTENCES)
        assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="has no decoder"):
        model.sentence_decoder = None
        token_importance(model, SENTENCES, tokenizer)
    assert model.training


def test_threads_encode_with_one_model_in_training_mode(tokenizer):
    """No thread encodes with dropout because another one has ended, and the mode is the same afterwards."""
    model = whole_model(str(ENCODER), channels=4)
    expected = model.encode(SENTENCES, tokenizer)
    model.train()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: model.encode(SENTENCES, copy.deepcopy(tokenizer)), range(40)))
    for embeddings in found:
        np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    assert all(module.training for module in model.modules())


def test_a_misspelt_keyword_is_refused(trained_like_model, tokenizer):
    """transformers' encoders take any keyword, and ignore what they do not know."""
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with pytest.raises(ValueError, match="nor its encoder has an argument output_reconstructions, pooling"):
        trained_like_model(**batch, output_reconstructions=True, pooling="mean")
    types, states = torch.zeros_like(batch["input_ids"]), {"output_hidden_states": True, "return_dict": True}
    assert trained_like_model(**batch, token_type_ids=types, position_ids=None, **states).hidden_states


def test_new_tokens_are_initialised_as_the_encoder_does():
    """Not with torch's deviation of 1, 50 times as much."""
    model = whole_model(str(ENCODER), channels=4)
    size = model.config.encoder_config.vocab_size
    model.resize_token_embeddings(size + 200, mean_resizing=False)
    new = model.get_input_embeddings().weight[size:]
    assert new.std().item() == pytest.approx(model.config.encoder_config.initializer_range, rel=0.1)


def test_encode_under_another_default_type_and_without_return_dict(tokenizer):
    model = whole_model(str(ENCODER), channels=4)
    expected = model.encode(SENTENCES, tokenizer)
    model.config.return_dict = False
    torch.set_default_dtype(torch.float64)
    try:
        np.testing.assert_allclose(model.encode(SENTENCES, tokenizer), expected, atol=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)
