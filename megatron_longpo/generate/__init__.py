"""Self-generation: long documents in, preference pairs out, by the model itself.

Read in this order: `corpus` (text to long contexts), `procedure` (what is asked of the model about one of them),
`engine` (who answers), `journal` (what is remembered across kills), `run` (all of it together), `merge` (the output).
"""
