"""An HTTP server of OpenAI's protocol that searches before it answers."""
