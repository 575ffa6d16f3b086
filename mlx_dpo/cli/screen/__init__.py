"""What the commands show: a run under way, results as text, and the pieces they share."""
