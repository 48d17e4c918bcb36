"""What every program does first and last: devices, caches, one clear error."""
