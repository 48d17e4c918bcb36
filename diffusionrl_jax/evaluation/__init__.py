"""Whether training did what it should: held-out prompts, the same noise, intervals."""
