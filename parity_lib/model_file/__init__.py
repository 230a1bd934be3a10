"""A GGUF file: its header, and the facts of the model in it."""
