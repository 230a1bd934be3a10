"""Build the candidate on other dependencies: the fork's ndarray, its crates/burn, other kernels, a poisoned burn."""
