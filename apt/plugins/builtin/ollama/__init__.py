"""Export to GGUF and Ollama, with proof in llama.cpp."""
