"""Arguments, losses, the Trainer and what it keeps: checkpoints, the record, the budget, the health check."""
