"""The page of a traced token."""
