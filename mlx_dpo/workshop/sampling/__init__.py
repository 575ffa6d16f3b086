"""Answers of a model to a list of prompts, to be judged or labelled."""
