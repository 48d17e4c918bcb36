"""Networks that rewards are made of."""
