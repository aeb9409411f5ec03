"""What runs in the process that holds a model: llama.cpp, continuous batching, samplers. Started by ``host``; needs numpy."""
