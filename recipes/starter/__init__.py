"""The embedded starter: a tiny model, its tokenizer, its data, and the script that makes all three from nothing."""
