"""
Where a training step spends its time: data, optimizer, and the forward and backward passes of encoder, autoencoder and
loss.

    python -m benchmarks.step_profile [--bf16] [--batch_size 64] [--output FILE] [train.py's flags]

A clock assigns every moment of the steps to one of these parts. It switches when a module's forward pass begins or
ends and, in the backward pass, when the gradient of the tensor between two parts is known. It is only for CPUs: on a
GPU it would measure when work is submitted, not when it is done.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.common import arguments_for, print_table, trainer_for, write_output
from modeling_sarcse import SarcseModelOutput
from sarcse.training.trainer import SarcseTrainer


WARM_UP, STEPS = 5, 40


class Clock(TrainerCallback):
    """Seconds spent in each part, from the end of the warm-up to the end of the last step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.part, self.since = "rest", time.perf_counter()

    def switch(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[self.part] += now - self.since
        self.part, self.since = part, now

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.switch("rest")
        if state.global_step == WARM_UP:
            self.seconds.clear()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.switch("optimizer")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.switch("rest")

    def during(self, part: str, function: Callable) -> Callable:
        """The function, timed as `part`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.switch(part)
            result = function(*args, **kwargs)
            self.switch("rest")
            return result

        return timed

    def attach(self, trainer: SarcseTrainer) -> None:
        trainer.add_callback(self)
        trainer.get_batch_samples = self.during("data", trainer.get_batch_samples)
        accelerator, model = trainer.accelerator, trainer.model
        accelerator.backward = self.during("loss, backward", accelerator.backward)
        accelerator.clip_grad_norm_ = self.during("optimizer", accelerator.clip_grad_norm_)
        model.encoder.register_forward_pre_hook(lambda *_: self.switch("encoder, forward"))
        model.encoder.register_forward_hook(lambda *_: self.switch("autoencoder, forward"))
        model.register_forward_hook(self.after_forward)

    def after_forward(self, model: torch.nn.Module, inputs: Any, output: SarcseModelOutput) -> None:
        self.switch("loss, forward")
        end_of_model = output.pooler_output if output.reconstruction is None else output.reconstruction
        end_of_model.register_hook(lambda _: self.switch("autoencoder, backward"))
        output.last_hidden_state.register_hook(lambda _: self.switch("encoder, backward"))


def main() -> None:
    parser = arguments_for(__doc__)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--bf16", action="store_true")
    arguments, flags = parser.parse_known_args()
    torch.set_num_threads(arguments.threads)
    clock = Clock()
    fields = {"max_steps": WARM_UP + STEPS, "per_device_train_batch_size": arguments.batch_size}
    with trainer_for(arguments, flags, **fields) as trainer:
        clock.attach(trainer)
        trainer.train()
    milliseconds = {part: 1000 * seconds / STEPS for part, seconds in clock.seconds.items()}
    total = sum(milliseconds.values())
    parts = sorted(milliseconds.items(), key=lambda item: -item[1])
    rows = [[part, f"{value:.1f}", f"{value / total:.1%}"] for part, value in parts]
    precision = "bf16" if arguments.bf16 else "float32"
    title = f"Steps of {arguments.batch_size} sentences, {precision}"
    print_table(title, [["part", "ms a step", "share"], *rows, ["the whole step", f"{total:.1f}", ""]])
    result = {"batch_size": arguments.batch_size, "precision": precision, "milliseconds": milliseconds}
    write_output(result, arguments.output)


if __name__ == "__main__":
    main()
