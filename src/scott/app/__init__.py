"""`scott app`: a page in the browser that draws with runs, watches them and plans them. gradio is its, and only its."""
