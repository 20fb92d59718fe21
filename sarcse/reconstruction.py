"""
How well a model reconstructs each token from the sentence embedding: what the loss and figure 1 of the paper are made
of.

Shapes: R rows that are reconstructed, T positions of the decoder, d dimensions.
"""

import torch
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from modeling_sarcse import (
    SarcseModel,
    SarcseModelOutput,
    encoder_max_length,
    in_evaluation_mode,
    list_of_sentences,
    token_ids_of,
)


def reconstruction_errors(outputs: SarcseModelOutput) -> torch.Tensor:
    """
    Squared error of each content token's reconstruction, averaged over d, in float32: `(R, T)`, zero after the last
    content token.

    Raises:
        ValueError: if the model was called without `output_reconstruction=True`.
    """
    reconstruction, target, mask = outputs.reconstruction, outputs.reconstruction_target, outputs.content_mask
    if reconstruction is None or target is None or mask is None:
        raise ValueError("nothing was reconstructed: call the model with `output_reconstruction=True`.")
    return (reconstruction.float() - target.float()).pow(2).mean(dim=-1) * mask  # (R, T, d) -> (R, T)


@torch.no_grad()
def token_importance(
    model: SarcseModel, sentences: list[str], tokenizer: PreTrainedTokenizerBase
) -> list[list[tuple[str, float]]]:
    """
    Tokens and their reconstruction errors: the smaller the error, the more important the token is to the sentence
    embedding (figure 1 of the paper).

    Args:
        model (`SarcseModel`): With a decoder, which releases leave out by default.
        sentences (`list[str]`): Encoded as one batch, and cut at the tokenizer's `model_max_length`.
        tokenizer (`PreTrainedTokenizerBase`): The model's own.

    Returns:
        For each sentence its `(token text, error)` pairs in order, without special tokens and tokens past
        `decoder_length`. Tokens that are bytes of one character are joined, with the mean of their errors. An
        error is the mean squared difference over d, in squared units of the encoder's vectors.

    Raises:
        ValueError: if the pooler has no reconstruction, the model has no decoder, or `sentences` is one string.
    """
    model.require_decoder()
    token_ids = token_ids_of(list_of_sentences(sentences), tokenizer, encoder_max_length(model, tokenizer))
    if not any(token_ids):
        return [[] for _ in token_ids]
    batch = DataCollatorWithPadding(tokenizer)([{"input_ids": ids} for ids in token_ids])
    output = in_evaluation_mode(model)(**batch.to(model.device), output_reconstruction=True, return_dict=True)
    special = [token for token in tokenizer.all_special_ids if token != tokenizer.unk_token_id]  # it is content
    importance = []
    for errors, ids, mask in zip(reconstruction_errors(output), output.content_input_ids, output.content_mask):
        content = mask & ~torch.isin(ids, torch.tensor(special, device=ids.device))
        importance.append(whole_characters(ids[content].tolist(), errors[content].tolist(), tokenizer))
    return importance


def whole_characters(
    token_ids: list[int], errors: list[float], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[str, float]]:
    """Text and error of each token. Tokens that are bytes of one character are joined, and their errors averaged."""
    tokens, start = [], 0
    for end in range(1, len(token_ids) + 1):
        text = tokenizer.decode(token_ids[start:end])
        # A replacement character means that some bytes of the character are still to come.
        if end == len(token_ids) or not text.endswith("\N{REPLACEMENT CHARACTER}"):
            tokens.append((text, sum(errors[start:end]) / (end - start)))
            start = end
    return tokens
