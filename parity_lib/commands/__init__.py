"""Commands of ``parity`` that are not in ``cli.py`` itself, one a module; each imports what it needs when it runs."""
