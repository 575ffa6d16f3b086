"""Pictures: SVG text, without a drawing library."""
