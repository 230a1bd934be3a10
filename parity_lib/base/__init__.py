"""The foundation: errors, names, strict JSON and TOML, atomic file writes, locks, progress."""
