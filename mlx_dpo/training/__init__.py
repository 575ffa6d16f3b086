"""The method: loss, log-probs, reference, trainer. No files, no printing."""
