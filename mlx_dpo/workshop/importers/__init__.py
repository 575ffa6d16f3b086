"""Other people's preference data as pairs of this project."""
