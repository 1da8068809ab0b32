"""How a dominant subspace is found, and how it is kept while training moves."""
