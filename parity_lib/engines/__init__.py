"""The two engines, the float64 oracle, and the processes that they run in."""
