"""Pyro models to fit, each with its data and, where they are known, its exact answers."""
