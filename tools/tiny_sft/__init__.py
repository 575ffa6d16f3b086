"""The embedded tiny SFT model: its text, its training, and how DPO on it is judged."""
