"""Pairs of answers decided by a person."""
