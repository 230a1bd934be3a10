"""One token traced through every layer of both engines."""
