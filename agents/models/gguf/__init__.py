"""What a GGUF file says of its model, and how much memory that will take. No llama.cpp."""
