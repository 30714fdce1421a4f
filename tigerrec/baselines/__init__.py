"""What a user would pick instead of a generator: one module a recommender."""
