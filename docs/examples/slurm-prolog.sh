#!/bin/sh
# Prolog of slurm.conf. What ends with anything but 0 drains the node and requeues the job: only 10, aifx's verdict, may.
PATH=/usr/bin:/usr/sbin:/bin:/sbin
export PATH
AIFX=/opt/aifx/bin/aifx

# MessageTimeout, 10 s by default, is how long Slurm expects a prolog to take at most.
timeout -k 1 9 "$AIFX" doctor slurm prolog
[ $? -eq 10 ] && exit 1
exit 0
