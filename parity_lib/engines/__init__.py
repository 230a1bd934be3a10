"""The engines that compute: the reference, the candidate, the float64 oracle, each in a worker process."""
