//! Which pending replica goes to which node: `solve(problem)`, and `explain`: why one does not go anywhere.
