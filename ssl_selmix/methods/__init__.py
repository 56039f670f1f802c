"""Parts that the methods are made of."""
