"""Tokenizers built from a file's metadata, the texts they are compared on, the cases of vocabularies."""
