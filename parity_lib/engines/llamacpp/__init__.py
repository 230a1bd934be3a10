"""The reference: builds of llama.cpp, and calls into them. Only ``abi`` imports it."""
