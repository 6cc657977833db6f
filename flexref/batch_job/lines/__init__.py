"""How lines of the OpenAI batch format, prompt objects and plain prompts are read, and how answers are written."""
