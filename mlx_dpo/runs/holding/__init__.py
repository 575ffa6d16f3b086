"""Holding a run to the memory of its machine."""
