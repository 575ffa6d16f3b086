"""Memory of a run before it: what a step will hold, and the settings that fit a budget."""
