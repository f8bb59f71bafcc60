"""Models larger than memory, and several processes."""
