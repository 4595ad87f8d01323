"""Factorise: low rank."""
