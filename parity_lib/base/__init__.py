"""What everything stands on: errors, names, strict JSON and TOML, files written whole, progress."""
