"""The study: which choices make SARCSE good, each run a line of `results/study.jsonl`."""
