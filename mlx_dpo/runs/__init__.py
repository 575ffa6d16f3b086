"""A run and its keeping: configuration, loop, checkpoints, metrics."""
