"""Artifacts of the g2c course: its checkpoints, tokenizers and manifests."""
