"""What the benchmark program measures: programs for chips that are not there, and warm ones."""
