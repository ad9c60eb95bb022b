"""Resolved settings of known runs, as YAML: one command is the run."""
