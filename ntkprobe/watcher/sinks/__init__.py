"""Where group means can be looked at while a run is measured, a file each."""
