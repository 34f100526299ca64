"""Model families behind one seam (`base.ModelAdapter`); `open_model.open_model` chooses by what a checkpoint holds."""
