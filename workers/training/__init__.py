"""What runs in verl's training workers: worker, engine with the teacher in it, loss, and the teacher's own weights."""
