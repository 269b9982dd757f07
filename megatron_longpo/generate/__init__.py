"""Self-generation: long documents in, preference pairs out, by the model itself.

Read in this order: `documents` and `chunk` (text in), `procedure` (what is asked of the model about one document, and
in which order), `engine` (who answers), `journal` (what is remembered across kills), `run` (all of it together).
"""
