"""SelMix for a model that has been trained elsewhere."""
