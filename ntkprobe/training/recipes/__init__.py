"""Data recipes of the alignment stage, a file each: which pairs of which sources are trained on."""
