"""Ink: a tidy table and an Axes in, the Axes out. Computes nothing, imports nothing of ours."""
