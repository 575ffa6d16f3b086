"""Models from folders, and text from models."""
