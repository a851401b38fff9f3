"""Rounds without training under Flower."""
