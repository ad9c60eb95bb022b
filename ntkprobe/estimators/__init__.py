"""Ways to compute all blocks of the kernel, one file each; the folder is the registry."""
