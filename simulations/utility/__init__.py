"""What privacy costs: every mechanism at every epsilon, beside training without privacy."""
