"""What others are shown of a run."""
