"""Pairs of answers decided by a rule or a model."""
