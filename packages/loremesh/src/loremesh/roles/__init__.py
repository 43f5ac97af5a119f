"""What a process can be: one nursery each, with the services that make the role."""
