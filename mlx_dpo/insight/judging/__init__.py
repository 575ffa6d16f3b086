"""A trained model, judged on pairs beside the model it came from."""
