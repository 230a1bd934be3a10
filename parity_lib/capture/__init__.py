"""Engines to records: prepare the files, run both sides, keep what they said."""
