"""The benchmarks' arithmetic, at a tiny size: what they measure is not tested, for a test must not depend on time."""

import json
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling_sarcse import SarcseModel

from .conftest import PROJECT, run_python


sys.path.insert(0, str(PROJECT / "benchmarks"))
import gpu_speed  # noqa: E402


@pytest.mark.parametrize("length", [12, 40])
def test_the_flops_of_the_formula_are_those_that_torch_counts(length):
    """... for sentences shorter and longer than what the decoder reconstructs."""
    config = gpu_speed.sarcse_config("tiny")
    model = SarcseModel._from_config(config, attn_implementation="eager").eval()  # the counter does not know SDPA here
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(3, 100, (1, length)), output_reconstruction=True)
    assert gpu_speed.forward_flops(config, length, reconstructed=1) == counter.get_total_flops()


def test_gpu_speed_runs_on_a_cpu(tmp_path):
    """Both steps, the plain one and the gradient cache's, with the utilisation that follows from its own figures."""
    small = ["--shapes", "tiny", "--batch_size", 4, "--length", 8, "--steps", 2, "--gradient_cache_mini_batch_size", 3]
    output = tmp_path / "speed.json"
    options = ["--variants", "sdpa", "gradient_cache", "--peak_teraflops", 2, "--output", output]
    process = run_python(PROJECT / "benchmarks" / "gpu_speed.py", *small, *options, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    rows = json.loads(output.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["sdpa", "gradient_cache"]
    config = gpu_speed.sarcse_config("tiny")
    needed = 3 * (4 * gpu_speed.forward_flops(config, 8, 1) + 4 * gpu_speed.forward_flops(config, 8, 0))
    for row in rows:
        assert row["utilisation"] * 2e12 * row["seconds"] == pytest.approx(needed)
        assert row["minutes_a_million"] == pytest.approx(row["seconds"] / 4 * 1e6 / 60)
