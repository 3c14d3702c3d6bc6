"""The same work assembled from libraries, for comparison: plain BentoML endpoints around libraries.

Both answer one image with prediction, companion, detector scores, p-value and saliency map, as `/v1/predict` does with
`explain=saliency`. They have no limits, batching, neutralisation, metrics or errors of their own.
"""
