"""The paper in one room: losses, queue, objective, step, state."""
