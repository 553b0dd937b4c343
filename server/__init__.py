"""The coordinator: rounds, aggregation, checkpoints and the history of runs."""
