"""GGUF files, which llama.cpp, Ollama and LM Studio read: written from a model, and read back."""
