"""Writes files that the editor shows: thumbnails of templates, subgraph blueprints, translations."""
