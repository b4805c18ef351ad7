"""The transcoder artefact, run densely and sparsely, and other projects' layouts."""
