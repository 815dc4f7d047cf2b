"""What is this machine? Cores after affinity and quota, memory limits, instruction sets, disks.

Every question is answered from /proc and /sys, takes ``root`` (a folder that stands for ``/``, for
tests and containers), and never raises on an odd system: where a file is missing or makes no sense
the answer is the one that a plain machine would give.

==========  ==================================================================================
`cgroups`   the process's own control groups, v1 and v2, and the numbers in them
`cpus`      usable CPUs, physical cores, CPU quota, the default number of threads
`memory`    how much this process may use, what is free, what it uses
`features`  the CPU's name and instruction set flags
`disks`     how fast a file can be read
==========  ==================================================================================
"""
