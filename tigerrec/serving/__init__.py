"""A trained run at work: recommendations, exports, new items."""
