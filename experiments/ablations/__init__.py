"""What each part of the method does, asked by runs that differ in one setting."""
