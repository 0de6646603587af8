"""Per-example gradients of any model, products with its Hessian, and projections."""
