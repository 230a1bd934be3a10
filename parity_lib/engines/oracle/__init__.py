"""The float64 oracle: the same model in numpy."""
