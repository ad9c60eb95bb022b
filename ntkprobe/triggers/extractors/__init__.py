"""Extractors of triggers, a file each, which do not import each other."""
