"""Deployment targets: one file each, found by the registry. None is built in yet."""
