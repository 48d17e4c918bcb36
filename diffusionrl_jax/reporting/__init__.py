"""Shows others what training has changed, and what people say of it."""
