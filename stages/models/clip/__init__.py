"""CLIP: vision and text towers."""
