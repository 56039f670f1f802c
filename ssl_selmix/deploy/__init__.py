"""A finished run in use: predictions, exported models, estimates."""
