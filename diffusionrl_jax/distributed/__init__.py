"""The device mesh, sharding rules, and microbatches that stay on their devices."""
