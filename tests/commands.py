"""
Runs the project's commands without the import time, which dominates short ones.

Each command is a separate process with its own folder, environment, arguments, streams, limits and exit code. It runs
the same file as `python train.py`, but is forked from a process that has only done the imports. The standard library's
fork server does them once for all commands.
"""

import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path


SERVER = multiprocessing.get_context("forkserver")
ROBERTA = "transformers.models.roberta.modeling_roberta"
IMPORTED = ["sarcse.training.running", "sarcse.evaluation.scoring", ROBERTA, __name__]
SERVER.set_forkserver_preload(IMPORTED)


class Command:
    """`python *arguments`, a file or a module with `-m`, continuing in the background."""

    def __init__(self, arguments: list[str], cwd: Path, environment: dict[str, str], largest_file: int | None) -> None:
        self.arguments, self.streams = arguments, tempfile.TemporaryDirectory()
        given = (arguments, cwd, environment, largest_file, self.streams.name)
        self.process = SERVER.Process(target=run, args=given)
        self.process.start()

    def wait(self) -> subprocess.CompletedProcess:
        self.process.join()
        with self.streams as folder:
            stdout, stderr = (Path(folder, name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, stdout, stderr)


def run(arguments: list[str], cwd: Path, environment: dict[str, str], largest_file: int | None, streams: str) -> None:
    """Runs in the new process: does what Python does with these arguments."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(streams, name), os.O_WRONLY | os.O_CREAT), descriptor)
    multiprocessing.set_start_method(None, force=True)  # for what it starts: the default again, not this server
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file,) * 2)
    is_module = arguments[0] == "-m"
    sys.argv = arguments[1:] if is_module else arguments
    if is_module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
