"""The page of a nightly run."""
