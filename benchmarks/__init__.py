"""What SARCSE costs and what its choices are worth: each module is a command, `python -m benchmarks.NAME`."""
