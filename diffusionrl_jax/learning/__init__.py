"""What every method of learning shares.

This is how samples are drawn and scored, how rewards become advantages, what the optimiser is
shown, the train state, and the order of an iteration.
"""
