"""The networks that rewards are made of."""
