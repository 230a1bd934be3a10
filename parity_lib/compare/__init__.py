"""Records to verdicts: no engine, no notebook tool, no screen."""
