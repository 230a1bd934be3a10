"""The night's parts: its plan, its cells as notebooks in child processes, its record, its screen."""
