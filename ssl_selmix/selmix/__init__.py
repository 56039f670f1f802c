"""Parts of SelMix and of the stages beside it."""
