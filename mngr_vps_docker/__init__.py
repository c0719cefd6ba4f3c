"""Base classes and shared infrastructure for mngr providers that run each host as one Docker container on one VPS."""
