"""Key names and configurations, Hugging Face <-> litgpt: a module an architecture."""
