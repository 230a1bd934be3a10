"""The page of a cell."""
