"""The pages of a machine, a model file and the fixtures."""
