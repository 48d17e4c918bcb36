"""What goes into an experiment: prompts, pictures and cached latents, all by random access."""
