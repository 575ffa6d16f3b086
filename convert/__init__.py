"""Models from PyTorch to MLX and back, each conversion proven by numbers."""
