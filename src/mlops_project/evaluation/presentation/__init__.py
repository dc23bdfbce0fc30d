"""How an evaluation is shown: pictures, a page, a model card, the terminal."""
