"""The arithmetic of what may leave a site: clipping now, noise and accounting later."""
