"""The paper's tables and figures: one file each, with the runs it is made of and what is drawn from them."""
