"""Raw files become items and histories: readers, the prepare stage, splits, training batches."""
