"""Rows made with a teacher: from seeds, documents, a task description, or inputs it is to answer."""
