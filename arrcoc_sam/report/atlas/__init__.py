"""The page, figures and tables of an atlas."""
