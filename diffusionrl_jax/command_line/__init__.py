"""What every program does first and last: devices, caches, and one clear error."""
