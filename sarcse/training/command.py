"""What `train.py` does, which is `sarcse train` in an installed package. It imports nothing slow before it must."""

from sarcse.options import one_line_errors


def main(arguments: list[str], prog: str) -> None:
    """Train with a recipe and flags, once or with `--seeds`. What the user can fix ends the process with one line."""
    with one_line_errors(prog):
        if not arguments:
            raise ValueError("give a recipe or --train_file FILE; --help lists all options.")
        from sarcse.training.parsing import number_of_seeds, parse_arguments

        number, arguments = number_of_seeds(arguments)
        model, data, training = parse_arguments(arguments)
        if number > 1 and training.push_to_hub:
            raise ValueError("--seeds with --push_to_hub: which of the models? Release one of them afterwards.")
        from sarcse.training import running  # datasets and the rest, which take seconds: for options that are right
    if number == 1:
        running.train(model, data, training)
    else:
        running.train_with_seeds(number, arguments, training.output_dir.rstrip("/"), prog)


def leave_group() -> None:
    """
    End the process group of several processes, at the end of the program. The group's threads would outlive the
    interpreter and abort it (github.com/pytorch/pytorch/issues/190489).
    """
    from accelerate import PartialState

    PartialState().destroy_process_group()
