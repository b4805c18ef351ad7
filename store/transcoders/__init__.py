"""The transcoder artefact, and other projects' layouts"""
