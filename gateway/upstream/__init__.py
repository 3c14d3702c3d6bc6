"""`palisade guard`: an engine whose forward passes are those of another server."""
