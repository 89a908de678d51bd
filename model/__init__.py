"""The model: configuration, Transformer, shards, batches, the one training loop, generation, evaluation. Imports nothing else of ours."""
