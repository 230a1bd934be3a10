"""What is stored, typed: traces, verdicts, pins, prompts, tolerances, the record of a nightly run."""
