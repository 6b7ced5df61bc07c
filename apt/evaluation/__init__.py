"""Measuring models: texts cut in rows, scores with intervals, speed, memory, and the operations over them."""
