"""Training: the engine that makes updates, the Lightning module around it, phases and stages."""
