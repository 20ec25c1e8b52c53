"""From text to the batches a model sees: corpus, tokenizer, packing, masking, batching."""
