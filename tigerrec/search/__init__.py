"""The best items of a history: the trie of all Semantic IDs, beam search along it, rankings by scores."""
