"""Model files: fetched, converted, quantised, made, each to a pinned hash."""
