"""A process for each engine: the client, the server, and the protocol between them."""
