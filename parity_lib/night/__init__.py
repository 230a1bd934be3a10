"""The nightly run: a plan, its cells in processes of their own, their pages and its record."""
