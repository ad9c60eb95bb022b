"""Ways to find the triggers in a harmful prompt, a file each; they do not know each other."""
