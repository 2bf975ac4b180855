"""Work on many machines: the same verbs as Ray tasks over files, with the same bytes as on one machine.

    parts.py        a part is a file, named by the hash of all that it is made of, with a done mark beside it
    plan.py         stages, groups of files, trees of merges, and which parts are still to be made
    tasks.py        what a worker does to make a part; it calls the verbs of one machine
    index_tasks.py  the same for the parts of an index, and its manifest
    address.py      where a cluster is, asked before Ray is
    ray.py          the one module that imports Ray: connecting, checking the nodes, keeping them busy
    status.py       the progress line, and what `wsl cluster status` shows
    counting.py     counting on a cluster
    index_plan.py   building an index on a cluster: the join, the parts, the manifest
    scoring.py      scoring and selecting on a cluster

State travels as files in a folder that all nodes see, or in a store, never through Ray's object store: a
task returns a name, a SHA-256 and a size. Ray schedules, retries after a worker or node is lost, and no
more; training stays with DeepSpeed's own launcher.
"""
