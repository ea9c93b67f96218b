"""Runtime environments: what the processes of tasks and actors need beside the job's code.

| module | when and where it runs |
|---|---|
| `fields` | as soon as an environment is described: what may be in it |
| `describe` | when a task, actor or job asks for it: local files are uploaded, what is inherited is added |
| `packages` | the same: folders and files as packages, named by their content |
| `setup` | on a node, in a process of its own, once for each environment: packages and interpreters |
| `apply` | in each worker, before the job's code |
"""
