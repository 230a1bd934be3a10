"""Judges records, one module for each rung T0 to T7; does not load an engine or write a file."""
