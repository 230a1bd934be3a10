"""One comparison: its request, a step for each rung, its conclusion. Prepares files and runs both engines."""
