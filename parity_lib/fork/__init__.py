"""Builds of the candidate on other crates: made, probed, swept op by op, compared, diagnosed."""
