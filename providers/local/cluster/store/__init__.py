"""Objects, their kinds, and the store that keeps and watches them."""
