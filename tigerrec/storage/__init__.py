"""Files that are whole or not there, and the stages that are made of them."""
