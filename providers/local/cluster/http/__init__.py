"""The API over HTTP: routing, reading, writing, discovery."""
