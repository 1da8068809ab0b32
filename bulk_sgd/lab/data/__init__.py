"""Data sets, images or text, and the order of their mini-batches.

TFDS is read without TensorFlow, and nothing is ever downloaded.
"""
