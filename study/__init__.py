"""The study: which choices make SARCSE good. Each run is a line of `results/study.jsonl`."""
