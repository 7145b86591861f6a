#!/bin/sh
# HealthCheckProgram of slurm.conf. Slurm kills it after 60 s and gives it no PATH.
PATH=/usr/bin:/usr/sbin:/bin:/sbin
export PATH
# SLURM_CONF=/etc/slurm/slurm.conf; export SLURM_CONF   # where slurm.conf lies elsewhere
AIFX=/opt/aifx/bin/aifx

# `timeout` is for what aifx cannot watch itself: a Python that hangs before it runs.
timeout -k 5 45 "$AIFX" doctor slurm health-check --resume
exit 0
