#!/usr/bin/env bash
# launch.sh CGROUP INIT ARGUMENT...: becomes the node's init, in its own cgroup of every hierarchy.
# kubelet demands the same path for cpu and memory, which the caller's need not be in version 1;
# in version 2 a cgroup with children may hold no process itself, hence /init below the cluster's.
set -euo pipefail
cgroup=$1 init=$2
shift 2

while read -r _ hierarchy type _; do
  case $type in cgroup | cgroup2) ;; *) continue ;; esac
  if [ "$type" = cgroup2 ] && grep -qw memory "$hierarchy/cgroup.controllers"; then
    for folder in "$hierarchy" "$hierarchy/$cgroup"; do
      mkdir -p "$folder"
      for controller in $(cat "$folder/cgroup.controllers"); do
        echo "+$controller" >"$folder/cgroup.subtree_control" 2>/dev/null || true
      done
    done
  fi
  for folder in "$hierarchy/$cgroup" "$hierarchy/$cgroup/init"; do
    mkdir -p "$folder"
    if [ -e "$folder/cpuset.mems" ] && [ "$type" = cgroup ]; then   # empty until they are copied
      cat "$folder/../cpuset.cpus" >"$folder/cpuset.cpus"
      cat "$folder/../cpuset.mems" >"$folder/cpuset.mems"
    fi
  done
  echo $$ >"$hierarchy/$cgroup/init/cgroup.procs"
done </proc/mounts

# Built into some kernels. Bridged answers must pass the address translation, or a pod cannot reach
# another one of its node through a ClusterIP.
modprobe -qa overlay br_netfilter veth 2>/dev/null || true

exec unshare --mount --net --pid --uts --ipc --fork --kill-child "$init" "$@"
