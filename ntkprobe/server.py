"""An OpenAI-compatible server as a function from conversations to answers."""
