"""What is differentiated, and its curvature as products with vectors."""
