"""The benchmarks' arithmetic, at a tiny size: what they measure is not tested, for a test must not depend on time."""

import json

import pytest

from benchmarks import gpu_speed

from .conftest import PROJECT, run_command


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
    process = run_command("-m", "benchmarks.gpu_speed", *small, *options, cwd=PROJECT)
    assert process.returncode == 0, process.stderr
    rows = json.loads(output.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["sdpa", "gradient_cache"]
    needed = 3 * gpu_speed.forward_flops(gpu_speed.sarcse_config("tiny"), 8, 8, 4)
    for row in rows:
        assert row["utilisation"] * 2e12 * row["seconds"] == pytest.approx(needed)
        assert row["minutes_a_million"] == pytest.approx(row["seconds"] / 4 * 1e6 / 60)
