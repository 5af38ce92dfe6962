"""Drawing, for reports and for TensorBoard: how figures look, what they show, safe text."""
