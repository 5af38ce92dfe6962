"""Drawing, for reports and for TensorBoard: how figures look, what they show, text made harmless."""
