"""The command line ``parity``: one module for each command."""
