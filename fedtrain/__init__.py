"""fedtrain: one model, many institutions, and no data ever leaves a site."""

__version__ = "0.1.0"
