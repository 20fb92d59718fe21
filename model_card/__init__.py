"""Templates of releases and Spaces, the page of a Space, and the command that makes both (`__main__.py`)."""
