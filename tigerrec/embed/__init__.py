"""Items become vectors, of their texts, of who bought them together, or of several of these: one module an embedder."""
