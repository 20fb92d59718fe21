"""The benchmarks' arithmetic, at a tiny size. Their timings are not tested, since no test may depend on time."""

import json
import subprocess
import sys

import pytest

from benchmarks import gpu_speed
from configuration_sarcse import SarcseConfig

from .conftest import PROJECT


@pytest.mark.parametrize("length", [12, 40])
def test_the_flops_of_each_product_are_counted_once(length):
    """Against a count by hand, two FLOPs per multiplication, for sentences below and above the decoder's limit."""
    config = gpu_speed.sarcse_config("tiny")
    d, layers, f, c = 32, 2, 64, config.channels
    assert (config.kernel_sizes, config.integration_kernel_size, config.decoder_length) == ([3, 4, 5], 3, 32)
    encoder = length * layers * (4 * d * d + 2 * d * f + 2 * length * d)  # projections, feed-forward, attention
    # Convolutions of widths 3 + 4 + 5, and their integration of width 3; the weighted mean has no product.
    sentence_encoder = length * (12 * d * c + 3 * 3 * c * d)
    positions = min(length, 32)
    decoder = d * 3 * c * 32 + positions * (12 * 3 * c * c + 3 * c * d)  # expansion, convolutions, output
    for rows, reconstructed in [(1, 0), (1, 1), (6, 4)]:
        needed = rows * (encoder + sentence_encoder) + reconstructed * decoder
        assert gpu_speed.forward_flops(config, rows, length, reconstructed) == 2 * needed


def test_gpu_speed_runs_without_what_no_step_needs(tmp_path):
    """
    SARCSE's steps run on a CPU where `datasets` and `evaluate` cannot be imported; sentence-transformers' where they
    can. The utilisation agrees with their other figures.
    """
    small = ["--shapes", "tiny", "--batch_size", 4, "--length", 8, "--steps", 2, "--gradient_cache_mini_batch_size", 3]
    ways = [["sdpa", "gradient_cache"], ["sentence_transformers"]]
    outputs = [tmp_path / f"{way[0]}.json" for way in ways]
    calls = [[*map(str, ["-", *small, "--ways", *way, "--output", path])] for way, path in zip(ways, outputs)]
    run = f"""
import sys
missing = dict.fromkeys(["datasets", "evaluate", "sarcse.training.trainer"])
sys.modules |= missing
from benchmarks.gpu_speed import main
sys.argv = {calls[0]}
main()
for name in missing:
    del sys.modules[name]
sys.argv = {calls[1]}
main()
"""
    process = subprocess.run([sys.executable, "-c", run], cwd=PROJECT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    config = gpu_speed.sarcse_config("tiny")
    twice, once = gpu_speed.forward_flops(config, 8, 8, 4), gpu_speed.forward_flops(config, 4, 8, 4, 0.1)
    plain = gpu_speed.forward_flops(SarcseConfig(encoder_config=config.encoder_config, pooler="cls"), 8, 8, 0)
    assert once < twice
    flops = {"two passes": twice, "one pass": once}
    expected = [(way, *item) for way in ways[0] for item in flops.items()] + [(ways[1][0], "two passes", plain)]
    results = [json.loads(path.read_text()) for path in outputs]
    rows = [(result["peak_teraflops"] * 1e12, row) for result in results for row in result["rows"]]
    assert len(rows) == len(expected)
    for (peak, row), (way, passes, needed) in zip(rows, expected):
        assert (row["way"], row["passes"]) == (way, passes)
        assert row["utilisation"] * peak * row["seconds"] == pytest.approx(3 * needed)
        assert row["minutes_a_million"] == pytest.approx(row["seconds"] / 4 * 1e6 / 60)
