"""The verbs, in the order of a build: one file each."""
