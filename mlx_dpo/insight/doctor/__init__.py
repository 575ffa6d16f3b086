"""Checks that only the machine at hand can answer."""
