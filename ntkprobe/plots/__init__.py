"""Drawing functions: a tidy table and an Axes in, the Axes out. They compute no measurement."""
