"""What goes in: prompts, pictures and their cached latents, all by random access."""
