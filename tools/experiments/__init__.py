"""The experiments of docs/experiments.md that need more than one command; each prints its table.

    python -m tools.experiments.length_bias

Run from the root of the repository. What they train goes to `runs/experiments/`. Without words of
their own they use the embedded model; others are handed to `mlx_dpo train`:

    python -m tools.experiments.ranking --model SmolLM2-135M-Instruct --max-length 64
"""
