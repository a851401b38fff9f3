"""Rounds without training under Flower, summed by SecAgg+."""
