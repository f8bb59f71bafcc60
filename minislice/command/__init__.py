"""The command `minislice`."""
