"""Linear algebra on pytrees."""
