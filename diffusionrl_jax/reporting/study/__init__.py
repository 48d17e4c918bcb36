"""A study of which of two models' pictures people prefer."""
