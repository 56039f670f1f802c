"""The name that `ssl_selmix.methods.views` had in version 0.1; it goes with the next release."""

from ssl_selmix.methods.views import Look, joint_features, joint_logits, together

__all__ = ["Look", "joint_features", "joint_logits", "together"]
