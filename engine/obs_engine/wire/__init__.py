"""OBS requests and replies as values: no socket, no file, no clock.

Knows the service's methods, query parameters, headers, XML and signatures.
Does not know how bytes travel, when it is, or what an upload is for. Every process may use it.
"""
