"""Tables, differences and plots of what was made."""
