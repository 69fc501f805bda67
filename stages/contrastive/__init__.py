"""Workshop: pairs of images and captions learned by contrast, and what they are worth."""
