"""Arithmetic without judgement: metrics of two rows, rounding of activations, errors of ops and products."""
