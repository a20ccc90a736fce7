"""What each change of a policy saves and costs, and policies side by side."""
