"""A folder with a failing op, its inputs and its weights: made, reduced, replayed."""
