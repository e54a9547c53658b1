"""Writes what the editor shows beside the nodes: thumbnails of templates, subgraph blueprints, translations."""
