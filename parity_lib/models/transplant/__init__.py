"""Models of another architecture, made from the weights of a pinned one."""
