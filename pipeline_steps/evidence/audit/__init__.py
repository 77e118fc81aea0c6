"""The identity audit: does an image show somebody else, repeat a photograph, or show a stranger?"""
