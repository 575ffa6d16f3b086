"""A run: settings, data, loop, checkpoints, metrics."""
