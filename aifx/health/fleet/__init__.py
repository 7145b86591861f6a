"""Many nodes at once: asked (`transports`), compared with each other (`compare`), ranked (`rank`), reported."""
