"""What an update costs: the arms that are compared, their equality, and the measurement."""
