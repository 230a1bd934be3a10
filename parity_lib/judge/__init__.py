"""Judges records, one module for each rung T0 to T7; loads no engine, writes nothing."""
