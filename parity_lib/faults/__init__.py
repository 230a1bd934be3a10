"""Seeded faults: what they are, where they are put, and which rung catches each."""
