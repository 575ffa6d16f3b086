"""Pairs of answers decided by a machine."""
