"""Vectors become codes, and codes Semantic IDs: one module a tokenizer."""
