"""Generators: what reads histories of items and scores the next item's codes; one options module and one model module a
family."""
