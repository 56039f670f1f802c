"""What knows nothing of images or classes."""
