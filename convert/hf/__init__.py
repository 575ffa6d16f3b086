"""Folders of Hugging Face: names, layouts, and undoing what mlx-lm made of them."""
