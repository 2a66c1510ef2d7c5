"""Guides for the models of ``models``, file for file.

Each file has ``GUIDES``: name -> function of the model (and options) that builds a guide.
"""
