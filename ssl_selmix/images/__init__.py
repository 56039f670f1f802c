"""Image files: found, decoded, kept."""
