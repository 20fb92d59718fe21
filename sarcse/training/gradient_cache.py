"""
Gradients of a whole batch with the activations of only a few rows in memory: gradient caching (Gao et al. 2021, arXiv
2101.06983).

InfoNCE needs the whole batch, but only its embeddings. A first pass without a graph computes them, and InfoNCE gives
their gradients. A second pass, with the same dropout masks, takes these back through the model, one mini-batch at a
time. The reconstruction loss is a sum over the sentences and only needs the second pass.

Views that are made from a sentence's vectors need the mean of the whole batch's vectors, too. An earlier pass, again
with the same dropout masks, adds it up.

Shapes: B sentences of one process in two views, L positions, d dimensions.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import get_device_states, set_device_states

from modeling_sarcse import SarcseModelOutput
from sarcse.training.views import dropping, kept_dimensions, mean_of_batch, sum_and_count


class GradientCache:
    """
    The two passes over one batch: call `embed`, then `replay`.

    Args:
        model (`SarcseModel`): The model, possibly wrapped.
        views (`dict`):
            The model's inputs: both views of all sentences, `(2B, L)`, or each sentence once, `(B, L)`, if
            `view_dropout` makes the views.
        size (`int`): Rows per mini-batch.
        reconstructed_rows (`int`): How many rows are reconstructed, counted from the first.
        view_dropout (`float`, *optional*): The share of dimensions that a view drops (`sarcse.training.views`).
        pooled_vectors (`Callable`): `SarcseModel.pooled_vectors` of the model, of which the views are made.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        views: dict[str, torch.Tensor],
        size: int,
        reconstructed_rows: int,
        view_dropout: float | None,
        pooled_vectors: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> None:
        self.model, self.size, self.view_dropout, self.pooled_vectors = model, size, view_dropout, pooled_vectors
        self.views_of_a_row = 1 if view_dropout is None else 2
        parts = zip(*(tensor.split(size) for tensor in views.values()))
        self.mini_batches = [dict(zip(views, rows)) for rows in parts]
        left = range(reconstructed_rows, reconstructed_rows - len(self.mini_batches) * size, -size)
        self.options: list[dict[str, Any]] = [
            {"output_reconstruction": rows > 0, "reconstructed_rows": max(rows, 0)} for rows in left
        ]
        self.contexts: list[Callable[[], AbstractContextManager[None]]] = []

    @torch.no_grad()
    def embed(self, see: Callable[[SarcseModelOutput], None]) -> torch.Tensor:
        """
        The first pass: embeddings, `(2B, d)`, as a leaf that requires a gradient. `see` is called with the outputs of
        each mini-batch.
        """
        embeddings: list[torch.Tensor] = []
        mean = None if self.view_dropout is None else self.mean_of_vectors(self.view_dropout)
        for index, options in enumerate(self.options):
            options["views"] = dropping(self.view_dropout, mean)
            with self.randomness(index):
                outputs = self.model(**self.mini_batches[index], **options)
            see(outputs)
            embeddings.append(outputs.pooler_output)  # (size, d), or (2 size, d)
        return self.in_order(embeddings).requires_grad_()

    def mean_of_vectors(self, rate: float) -> torch.Tensor:
        """The mean of the vectors of all mini-batches, and of all processes, `(d,)`."""
        sums = []
        for index, inputs in enumerate(self.mini_batches):
            with self.randomness(index):
                contextual = self.model(**inputs).last_hidden_state  # (size, L, d)
            vectors = self.pooled_vectors(contextual, inputs["input_ids"])  # (size, L, d) or (size, L, 2d)
            sums.append(sum_and_count(vectors, inputs["attention_mask"]))  # (d + 1,)
            kept_dimensions(vectors, rate)  # the views will draw these numbers, so that no other mini-batch does
        return mean_of_batch(torch.stack(sums).sum(dim=0))

    def randomness(self, index: int) -> AbstractContextManager[None]:
        """A context in which a mini-batch draws the same random numbers in every pass."""
        if index < len(self.contexts):
            return self.contexts[index]()
        self.contexts.append(replay_randomness(self.mini_batches[index]["input_ids"]))
        return nullcontext()

    def in_order(self, embeddings: list[torch.Tensor]) -> torch.Tensor:
        """Join the mini-batches' embeddings in the order of one batch, `(2B, d)`: first views before second views."""
        views = zip(*(part.chunk(self.views_of_a_row) for part in embeddings))
        return torch.cat([rows for view in views for rows in view])

    def by_mini_batch(self, gradient: torch.Tensor) -> list[torch.Tensor]:
        """The inverse of `in_order`."""
        views = gradient.chunk(self.views_of_a_row)
        return [torch.cat(rows) for rows in zip(*(view.split(self.size) for view in views))]

    def replay(
        self, gradient: torch.Tensor, no_sync: Callable[[], AbstractContextManager[None]]
    ) -> Iterator[tuple[SarcseModelOutput, torch.Tensor]]:
        """
        The second pass: yield each mini-batch's outputs, with a graph, and a value. Its backward pass applies
        `gradient`, that of the embeddings `(2B, d)`, by the chain rule. The caller adds its own losses and calls
        backward before the next mini-batch.

        Processes exchange gradients once, with the first mini-batch, which comes last. It has rows to reconstruct, so
        every parameter has a gradient. The others run within `no_sync`.
        """
        gradients = self.by_mini_batch(gradient)
        for index in reversed(range(len(self.mini_batches))):
            with self.randomness(index), no_sync() if index > 0 else nullcontext():
                outputs = self.model(**self.mini_batches[index], **self.options[index])
                yield outputs, (outputs.pooler_output * gradients[index]).sum()


def replay_randomness(*tensors: torch.Tensor) -> Callable[[], AbstractContextManager[None]]:
    """A context that replays the random numbers drawn from now on, on the CPU and on the tensors' devices."""
    cpu_state, (devices, device_states) = torch.get_rng_state(), get_device_states(*tensors)

    @contextmanager
    def replay() -> Iterator[None]:
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(cpu_state)
            set_device_states(devices, device_states)
            yield

    return replay
