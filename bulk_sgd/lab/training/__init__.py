"""Training: one prefix, a fork into arms, and what is measured on the way."""
