"""Other people's preference files into this project's rows."""
