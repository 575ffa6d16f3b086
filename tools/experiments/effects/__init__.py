"""What DPO does to a model, measured on public pairs: the figures and pictures of docs/effects.md.

python -m tools.experiments.effects.study --help       # measure, one resumable cell at a time
python -m tools.experiments.effects.pictures           # draw what was measured
"""
