"""Tidy table and Axes in, Axes out: plots compute no number and import nothing of ours."""
