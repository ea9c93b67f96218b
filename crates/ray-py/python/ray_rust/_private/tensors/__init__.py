"""Tensors that go from actor to actor past the object store.

A value of which a transport takes the tensors is stored as a `packing.TensorShell`: everything but the tensors,
and what a receiver has to know of them. The tensors stay where they were made, in `shelf.store`, as long as the
*token* lives, an object of that process to which the shell refers: so they are freed by the counts that free
objects, whoever dies. References to such values are `refs.TensorRef`s. Whoever passes one to an actor has its
tensors transferred (`calls`); `get` fetches them (`fetching`).
"""
